"""Texts that tokenizers get wrong. Every test that compares with a reference runs over all of them."""

from __future__ import annotations

_PARAGRAPH = "The quick brown fox jumps over the lazy dog, and then it rests. "

TEXTS: dict[str, str] = {
    "empty": "",
    "space": " ",
    "word": "Hello",
    "sentence": "Hello, world! It's 2026; we've seen 'em, I'll say they'd've gone.",
    "shouted_contractions": "IT'S WE'VE I'LL Don'T 'S'T ''s 'sS",
    "leading_spaces": "   three before",
    "trailing_spaces": "three after   ",
    "long_spaces": "a" + " " * 70 + "b" + " " * 31 + "c" + " " * 2 + "d",
    "tabs": "\tone\t\ttwo\t\t\t\tthree \t mixed\t ",
    "newlines": "one\n\ntwo\n\n\n\nthree\n \n  \n end\n",
    "crlf": "line one\r\nline two\r\n\r\nline three\r",
    "odd_spaces": "nbsp\u00a0thin\u2009ideographic\u3000next\u0085line\u2028para\u2029narrow\u202fend",
    "zero_width": "zero\u200bwidth\u200cnon\u200djoiner\u2060word\ufeffbom",
    "control_chars": "\x00nul\x01\x02\x07bell\x08\x0b\x0c\x1b[31mred\x1b[0m\x7f\x80\x9f",
    "numbers": "1 12 123 1234 12345 123456789 3.14159 1,000,000 0x1F 1e-9 2026-11-22 ½ Ⅷ ٣٤٥ 一二三 ①②③ ১২৩",
    "japanese": "吾輩は猫である。名前はまだ無い。カタカナ、ひらがな、漢字。㍿ｱｲｳ「鉤括弧」〜ー",
    "chinese": "今天天气很好，我们去公园散步吧！簡體與繁體。",
    "korean": "안녕하세요 세계! 한국어 텍스트입니다.",
    "thai": "สวัสดีชาวโลก ภาษาไทยไม่มีช่องว่างระหว่างคำ",
    "arabic": "مرحبا بالعالم، هذا نص عربي مع تشكيل: مُحَمَّد ١٢٣",
    "hebrew": "שלום עולם, זהו טקסט בעברית עם נִקּוּד",
    "hindi": "नमस्ते दुनिया, यह हिन्दी है। क्षत्रिय",
    "russian": "Привет, мир! Это русский текст с ёлкой.",
    "greek": "Γειά σου Κόσμε, τα ελληνικά άρθρα",
    "vietnamese": "Xin chào thế giới, tiếng Việt có dấu",
    "mixed_scripts": "Helloこんにちは世界Приветمرحبا123abcÄÖÜßéñ",
    "emoji": "😀 😃😄 👍🏽 🧑‍🚀 👨‍👩‍👧‍👦 🏳️‍🌈 🇯🇵🇩🇪🇺🇸 ❤️ ☺️ 1️⃣",
    "symbols": "∑∫√∞≠≤≥±×÷ €£¥₿ ©®™ ←↑→↓ ░▒▓█ ¿¡ «» „“ … — –",
    "python": 'def f(x: int) -> str:\n    """Doc."""\n    return f\'{x:>10}\'  # comment\n\n\nclass A(B):\n\tpass\n',
    "cpp": "#include <vector>\nint main(int argc, char** argv) {\n\treturn (argc >> 1) & 0xFF;  // shift\n}\n",
    "json": '{"a": [1, 2.5, null], "b": {"c": "d\\n\\u00e9"}}',
    "html": '<div class="x"><p>Text &amp; more</p><br/><table><tr><td>1</td></tr></table></s></div>',
    "url": "https://example.com/path/to/page?query=1&other=a%20b#fragment user.name+tag@example.co.jp",
    "markdown": "# Title\n\n* item *one*\n* item **two**\n\n```sh\n$ ls -la | grep '^d'\n```\n---\n",
    "latex": "$$\\int_{0}^{\\infty} e^{-x^2}\\,dx = \\frac{\\sqrt{\\pi}}{2}$$",
    "punctuation": "!!! ??? ... ,,, ;;; ::: --- ___ === +++ *** /// \\\\\\ ((([[[{{{<<<>>>}}}]]])))",
    "camel_case": "camelCase PascalCase snake_case SCREAMING_CASE kebab-case XMLHttpRequest iPhone15ProMax ÀÉÎõü ǅ",
    "repeated": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" * 3,
    "random_letters": "xqzjkvwpfg bdhlmnrstcy qwrtpsdfghjklzxcvbnm mnbvcxzlkjhgfdsapoiuytrewq",
    "special_tokens": "<|im_start|>user\n<|im_end|><|endoftext|></s><s><bos><eos>"
    "<start_of_turn><end_of_turn><|eot_id|>[INST]",
    "special_fragments": "<|im_ start|> <|im_start| > < |im_end|> <|IM_END|> <unused0> <0x0A> <0xFF> "
    "<pad> <unk> [CLS] [UNK]",
    "space_mark": "\u2581already\u2581marked \u2581 \u2581\u2581",
    "byte_alphabet": "Ġword Ċline ĉtab âĢĻ ÃĤ",
    "replacement": "bad \ufffd\ufffd bytes",
    "private_use": "\ue000\uf8ff\U000f0000\U0010ffff \ufffe\uffff",
    "rare_planes": "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈𐌰 𠜎𠜱 🀄 𓀀",
    "dotted_case": "İstanbul ıĞ ŒœÆæ ŁłŚś ĲĳǱ ﬁﬂ",
    "long_line": _PARAGRAPH * 160,
    "long_japanese": "国境の長いトンネルを抜けると雪国であった。夜の底が白くなった。" * 30,
    "long_digits": "31415926535897932384626433832795028841971693993751" * 8,
    "quotes": '“Curly” ‘single’ \'tis "plain" don’t ‛odd‚',
    "tool_tags": '<tool_call>\n{"name": "f"}\n</tool_call><think>hm</think>',
    "whitespace_soup": " \t \n \r\n \u00a0 \n\n\t\t  \n   x",
}

# Decomposed characters: families whose own tokenizer composes first (NFC) differ here from those that do not.
DECOMPOSED: dict[str, str] = {
    "decomposed": "e\u0301 a\u0308 n\u0303 o\u0302\u0323 か\u3099 は\u309a Å\u030a",
    "singletons": "\u2126 \u212b \u212a \u1f71 \uf900",
    "stacked_marks": "Z\u0351\u036b\u0343\u036a\u0302a\u0300\u0301\u0302l\u0334g\u0321o\u0322",
    "hangul_jamo": "\u1112\u1161\u11ab\u1100\u1173\u11af",
}

INVALID_BYTES: dict[str, bytes] = {
    "lone_continuation": b"abc\x80def",
    "cut_character": "日本語".encode()[:-1],
    "cut_emoji": b"x" + "😀".encode()[:3] + b"y",
    "latin1": "café au lait".encode("latin-1"),
    "overlong": b"\xc0\xaf\xe0\x80\xaf",
    "surrogate": b"\xed\xa0\x80 \xed\xbf\xbf",
    "all_high": bytes(range(0x80, 0x100)),
    "utf16": "hi あ".encode("utf-16"),
}
