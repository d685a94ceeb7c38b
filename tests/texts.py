"""Real prose in many scripts, and the texts that tests cut from it: short and long, the same in
every run.

Article 1 of the Universal Declaration of Human Rights, and openings of books in the public domain.
"""

from __future__ import annotations

from itertools import cycle, islice

SNIPPETS = (
    # Article 1, by script.
    (
        "All human beings are born free and equal in dignity and rights. They are endowed with reason and conscience "
        "and should act towards one another in a spirit of brotherhood."
    ),
    (
        "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen begabt "
        "und sollen einander im Geiste der Brüderlichkeit begegnen."
    ),
    (
        "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison et de "
        "conscience et doivent agir les uns envers les autres dans un esprit de fraternité."
    ),
    (
        "Todos los seres humanos nacen libres e iguales en dignidad y derechos y, dotados como están de razón y "
        "conciencia, deben comportarse fraternalmente los unos con los otros."
    ),
    (
        "Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar. Akıl ve vicdana sahiptirler ve birbirlerine "
        "karşı kardeşlik zihniyeti ile hareket etmelidirler."
    ),
    "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền lợi.",
    (
        "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и совестью и "
        "должны поступать в отношении друг друга в духе братства."
    ),
    (
        "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα. Είναι προικισμένοι με "
        "λογική και συνείδηση, και οφείλουν να συμπεριφέρονται μεταξύ τους με πνεύμα αδελφοσύνης."
    ),
    (
        "כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם. כולם חוננו בתבונה ובמצפון, לפיכך חובה עליהם לנהוג "
        "איש ברעהו ברוח של אחווה."
    ),
    "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق. وقد وهبوا عقلًا وضميرًا وعليهم أن يعامل بعضهم بعضًا بروح الإخاء.",
    "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
    "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
    "人人生而自由,在尊严和权利上一律平等。他们赋有理性和良心,并应以兄弟关系的精神相对待。",
    "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
    "ყველა ადამიანი იბადება თავისუფალი და თანასწორი თავისი ღირსებითა და უფლებებით.",
    # Books.
    (
        "Call me Ishmael. Some years ago—never mind how long precisely—having little or no money in my purse, and "
        "nothing particular to interest me on shore, I thought I would sail about a little and see the watery part "
        "of the world."
    ),
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness.",
    "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему.",
    "En un lugar de la Mancha, de cuyo nombre no quiero acordarme, no ha mucho tiempo que vivía un hidalgo.",
    "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。",
    "道可道,非常道。名可名,非常名。无名天地之始,有名万物之母。",
    "Gallia est omnis divisa in partes tres, quarum unam incolunt Belgae, aliam Aquitani.",
    # All that is not prose.
    "def add(a: int, b: int) -> int:\n    return a + b  # 1 + 2 == 3\n",
    "π ≈ 3.14159, e ≈ 2.71828; x² + y² = r²; ∀ε>0 ∃δ>0 …",
    "Thanks a lot! 👍🏽 See you at 10:30 in São Paulo — naïve café, 50 € 🎉",
)
_LENGTHS = (1, 3, 8, 20, 45, 90, 180, 300)  # characters


def varied(count: int) -> list[str]:
    """Return `count` different texts of 1 to 300 characters, every script in every length."""
    texts: dict[str, None] = {}
    for start in range(len(SNIPPETS) * len(_LENGTHS)):
        length = _LENGTHS[start // len(SNIPPETS)]
        # One snippet after another, so that longer texts mix scripts.
        text = long_text(length, first=start % len(SNIPPETS))
        texts.setdefault(text)
    for number in range(count):
        texts.setdefault(f"{number}: {SNIPPETS[number % len(SNIPPETS)]}")
    return list(texts)[:count]


def long_text(characters: int, *, first: int = 0) -> str:
    """Return exactly so many characters of prose, starting with the given snippet."""
    size, parts = 0, []
    for snippet in islice(cycle(SNIPPETS), first, None):
        parts.append(snippet)
        size += len(snippet) + 1
        if size > characters:
            return " ".join(parts)[:characters].strip() or snippet[:1]
    raise AssertionError("a cycle ends")
