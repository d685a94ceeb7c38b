// Decodes a gateway's answers into structs with typed fields, strictly where the answer is OpenAI's; test_go.py starts
// it. A float such as 128.0 in an int field, a missing type or an unknown field of OpenAI's ends it.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
)

type Embeddings struct {
	Object string `json:"object"`
	Data   []struct {
		Object    string    `json:"object"`
		Index     int       `json:"index"`
		Embedding []float32 `json:"embedding"`
	} `json:"data"`
	Model string `json:"model"`
	Usage struct {
		PromptTokens int `json:"prompt_tokens"`
		TotalTokens  int `json:"total_tokens"`
	} `json:"usage"`
}

type Rerank struct {
	ID      string `json:"id"`
	Model   string `json:"model"`
	Results []struct {
		Index          int                    `json:"index"`
		RelevanceScore float64                `json:"relevance_score"`
		Document       *struct{ Text string } `json:"document"`
	} `json:"results"`
}

type Score struct {
	ID      string `json:"id"`
	Created int64  `json:"created"`
	Data    []struct {
		Index int     `json:"index"`
		Score float64 `json:"score"`
	} `json:"data"`
}

type Record struct {
	Embedding     []float32 `json:"embedding"`
	Dimensions    int       `json:"dimensions"`
	PreparedText  string    `json:"prepared_text"`
	ModelVersion  string    `json:"model_version"`
	ModelChecksum string    `json:"model_checksum"`
	Cached        bool      `json:"cached"`
}

type Batch struct {
	Results []struct {
		EntityID  string    `json:"entity_id"`
		Embedding []float32 `json:"embedding"`
		Success   bool      `json:"success"`
		Error     *string   `json:"error"`
		Cached    bool      `json:"cached"`
	} `json:"results"`
	Dimensions  int `json:"dimensions"`
	Total       int `json:"total"`
	Success     int `json:"success"`
	Failed      int `json:"failed"`
	CachedCount int `json:"cached_count"`
}

type ModelInfo struct {
	ModelName            string  `json:"model_name"`
	Dimensions           int     `json:"dimensions"`
	ModelLoadTimeSeconds float64 `json:"model_load_time_seconds"`
	Limits               struct {
		MaxBatchSize         int     `json:"max_batch_size"`
		MaxTextLength        int     `json:"max_text_length"`
		EncodeTimeoutSeconds float64 `json:"encode_timeout_seconds"`
	} `json:"limits"`
	Cache struct {
		Enabled     bool `json:"enabled"`
		TTLSeconds  int  `json:"ttl_seconds"`
		CurrentSize int  `json:"current_size"`
		MaxSize     int  `json:"max_size"`
	} `json:"cache"`
}

type CacheStats struct {
	Enabled            bool    `json:"enabled"`
	CurrentSize        int     `json:"current_size"`
	MaxSize            int     `json:"max_size"`
	TTLSeconds         int     `json:"ttl_seconds"`
	UtilizationPercent float64 `json:"utilization_percent"`
}

type Stats struct {
	Batching struct {
		QueueSize         int     `json:"queue_size"`
		ProcessedRequests int     `json:"processed_requests"`
		AverageBatchSize  float64 `json:"average_batch_size"`
		TotalBatches      int     `json:"total_batches"`
	} `json:"batching"`
	Config struct {
		BatchSize    int `json:"batch_size"`
		TimeoutMs    int `json:"timeout_ms"`
		MaxQueueSize int `json:"max_queue_size"`
	} `json:"config"`
	Timestamp float64 `json:"timestamp"`
}

var key = os.Args[2]

// Every optional field is sent, as structs without omitempty do.
type embeddingsRequest struct {
	Model          string   `json:"model"`
	Input          []string `json:"input"`
	EncodingFormat *string  `json:"encoding_format"`
	Dimensions     *int     `json:"dimensions"`
	User           *string  `json:"user"`
	Truncate       *string  `json:"truncate"`
	Normalize      *bool    `json:"normalize"`
}

func ask(url string, body any, into any, strict bool) {
	method, payload := "GET", []byte(nil)
	if body != nil {
		method = "POST"
		payload, _ = json.Marshal(body)
	}
	request, err := http.NewRequest(method, url, bytes.NewReader(payload))
	check(url, err)
	request.Header.Set("Authorization", "Bearer "+key)
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	answer, err := http.DefaultClient.Do(request)
	check(url, err)
	defer answer.Body.Close()
	if answer.StatusCode != 200 {
		check(url, fmt.Errorf("status %d", answer.StatusCode))
	}
	decoder := json.NewDecoder(answer.Body)
	if strict {
		decoder.DisallowUnknownFields()
	}
	check(url, decoder.Decode(into))
}

func check(where string, err error) {
	if err != nil {
		fmt.Println(where, err)
		os.Exit(1)
	}
}

func gateway(url string) any {
	var embeddings Embeddings
	ask(url+"/v1/embeddings", embeddingsRequest{Model: "m3", Input: []string{"w1 w2", "w3"}}, &embeddings, true)
	pair := map[string]any{"model": "cross", "query": "w1", "documents": []string{"w2", "w3"}, "top_n": 0, "return_documents": true}
	var rerank Rerank
	ask(url+"/v1/rerank", pair, &rerank, false)
	var score Score
	ask(url+"/score", map[string]any{"model": "cross", "text_1": "w1", "text_2": []string{"w2"}}, &score, false)
	return []any{embeddings, rerank, score}
}

func matching(url string) any {
	var record Record
	ask(url+"/prepare-and-embed", map[string]any{"title": "w1", "price": 10000000, "rooms": nil}, &record, false)
	var batch Batch
	entities := []map[string]any{{"entity_id": "1", "title": "w1"}, {"entity_id": "2"}}
	ask(url+"/batch", map[string]any{"entities": entities}, &batch, false)
	var info ModelInfo
	ask(url+"/model-info", nil, &info, false)
	var stats CacheStats
	ask(url+"/cache/stats", nil, &stats, false)
	return []any{record, batch, info, stats}
}

func inference(url string) any {
	var stats Stats
	ask(url+"/stats", nil, &stats, false)
	return []any{stats}
}

func main() {
	systems := map[string]func(string) any{"gateway": gateway, "matching-service": matching, "emb-infer-bge-m3": inference}
	report, err := json.Marshal(systems[os.Args[1]](os.Args[3]))
	check("report", err)
	fmt.Println(string(report))
}
