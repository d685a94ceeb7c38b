// Speaks to a gateway through the JDK's own HttpClient, as it is; test_java.py judges what it prints, a line for each
// request: the status, the HTTP version, and the body. On plain connections it offers `Upgrade: h2c` with every request.

import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.util.concurrent.CompletableFuture;
import java.util.stream.IntStream;

public class Check {
  private static final HttpClient CLIENT = HttpClient.newHttpClient();

  private static HttpRequest request(String url, String key, String path, String body) {
    HttpRequest.Builder builder = HttpRequest.newBuilder(URI.create(url + path)).header("Authorization", "Bearer " + key);
    if (body == null) return builder.GET().build();
    return builder.header("Content-Type", "application/json").POST(HttpRequest.BodyPublishers.ofString(body)).build();
  }

  private static String line(HttpResponse<String> answer) {
    return answer.statusCode() + "\t" + answer.version() + "\t" + answer.body().replace("\n", " ");
  }

  public static void main(String[] arguments) throws Exception {
    System.setOut(new java.io.PrintStream(System.out, true, StandardCharsets.UTF_8));
    String url = arguments[0], key = arguments[1];
    for (int place = 2; place < arguments.length; place += 2) {
      String body = arguments[place + 1].isEmpty() ? null : arguments[place + 1];
      HttpRequest request = request(url, key, arguments[place], body);
      System.out.println(line(CLIENT.send(request, HttpResponse.BodyHandlers.ofString())));
    }
    String body = arguments[3];
    CompletableFuture<?>[] many =
        IntStream.range(0, 20)
            .mapToObj(i -> CLIENT.sendAsync(request(url, key, arguments[2], body), HttpResponse.BodyHandlers.ofString()))
            .toArray(CompletableFuture[]::new);
    CompletableFuture.allOf(many).join();
    for (CompletableFuture<?> each : many) {
      @SuppressWarnings("unchecked")
      HttpResponse<String> answer = (HttpResponse<String>) each.join();
      System.out.println(line(answer));
    }
  }
}
