"""The 64 texts whose vectors are pinned: sentences in many scripts, odd characters, long ones.

Short, so that a start waits for them less than a second on two cores of a CPU (MiniLM).
"""

from __future__ import annotations

_PLAIN = (
    "The quick brown fox jumps over the lazy dog.",
    "How do I reset my password?",
    "Photosynthesis converts light into chemical energy.",
    "THE ANNUAL REPORT 2024 WAS PUBLISHED ON MARCH 3rd.",
    "iPhone vs. iPad: which one should I buy?",
    "Refunds are made within 14 days of the return.",
    "a",
    "42",
    "What is the capital of Australia?",
    "He read the book that she had read before him.",
    "Interest rates rose by 0.25 percentage points.",
    "The patient was given 5 mg of the drug twice a day.",
    "No.",
    "def add(a: int, b: int) -> int:\n    return a + b",
    "SELECT name, age FROM people WHERE age >= 18 ORDER BY name;",
    '{"id": 7, "tags": ["red", "blue"], "price": 19.99}',
    "<p>Hello, <b>world</b>!</p>",
    "https://example.org/path?query=1#part and mail@example.org",
    "E = mc² and ∫₀¹ x² dx = 1/3",
    "C₈H₁₀N₄O₂ is caffeine.",
)
_LANGUAGES = (
    "Die Katze sitzt auf der Matte und schläft.",
    "Straße, Größe, Übung: ÄÖÜ äöü ß",
    "Où se trouve la bibliothèque la plus proche ?",
    "¿Cuánto cuesta un billete de ida y vuelta a Sevilla?",
    "A reunião foi adiada para a próxima terça-feira.",
    "Gli studenti hanno superato l'esame con ottimi voti.",
    "Wszystkie prawa zastrzeżone; zażółć gęślą jaźń.",
    "Příliš žluťoučký kůň úpěl ďábelské ódy.",
    "Съешь же ещё этих мягких французских булок.",
    "Як мені дістатися до вокзалу?",
    "Η γρήγορη αλεπού πηδάει πάνω από τον σκύλο.",
    "איפה נמצאת תחנת הרכבת?",
    "أين تقع أقرب صيدلية من هنا؟",
    "سلام، حال شما چطور است؟",
    "मुझे हिंदी में एक किताब चाहिए।",
    "আমি বাংলায় গান গাই।",
    "தமிழ் ஒரு பழமையான மொழி.",
    "ราคาตั๋วรถไฟไปเชียงใหม่เท่าไร",
    "Thời tiết hôm nay ở Hà Nội thế nào?",
    "İstanbul'da ılık bir ilkbahar günü",
    "今天天气怎么样?",
    "机器学习是人工智能的一个分支。",
    "東京から京都まで新幹線でどのくらいかかりますか。",
    "カタカナとひらがな、ＡＢＣ１２３",
    "서울에서 부산까지 얼마나 걸려요?",
    "გამარჯობა, როგორ ხარ?",
    "Բարեւ, ինչպե՞ս ես։",
    "ሰላም ለሁሉም ይሁን።",
    "Habari ya asubuhi, rafiki yangu.",
    "Selamat pagi, apa kabar?",
)
_ODD = (
    "👩‍👩‍👧‍👦 family, 🇫🇷 flag, 👍🏽 thumb",
    "cafe\u0301 and caf\u00e9 are the same word",
    "ﬁne ligature, Ａ full width, ① circled",
    "  leading and   inner   spaces  ",
    "tab\there\nnew line\r\nand another",
    "zero\u200bwidth\u200dand\ufeffmarks",
    "!!! ??? ... --- ***",
    "[CLS] not a token [SEP] <s> </s> <pad> <|im_end|>",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "\U0001f9ea\U00020000 beyond the first plane 𝒜𝒷𝒸",
    "query: what is a prompt?",
    "passage: A prompt is put before a text.",
)
_LONG = (
    " ".join(f"Item {number} of the list costs {number * 7 % 93} euros." for number in range(25)),
    # Longer than the context of small models, so that the side on which it is cut counts.
    " ".join(f"Line {number} says that {number * 31 % 101} follows." for number in range(60)),
)
TEXTS = (*_PLAIN, *_LANGUAGES, *_ODD, *_LONG)
