use proptest::prelude::*;

use super::*;

/// As the other reader in this crate sees it.
fn as_serde(value: &Value<'_>) -> serde_json::Value {
    match &value.kind {
        Kind::Literal | Kind::Number => serde_json::from_str(value.text).unwrap(),
        Kind::String(text) => text.as_ref().into(),
        Kind::Array(elements) => elements.iter().map(as_serde).collect(),
        Kind::Object(members) => members.iter().map(|(name, value)| (name.to_string(), as_serde(value))).collect(),
    }
}

#[test]
fn what_the_grammar_has_is_read_and_nothing_else() {
    let good = [
        "null",
        "true",
        "false",
        "0",
        "-0",
        "10",
        "-1.5e+10",
        "1E0",
        "0.0",
        "\"\"",
        "[]",
        "{}",
        " [ 1 , 2 ] ",
        "\t{ \"a\" : 1 }\r\n",
        r#""\"\\\/\b\f\n\r\t\u0041\u00e9\ud83d\ude00é😀""#,
        "\"\u{7f}\"",
        "[[],{},[{}]]",
    ];
    for text in good {
        assert_eq!(
            as_serde(&parse(text.as_bytes()).unwrap()),
            serde_json::from_str::<serde_json::Value>(text).unwrap()
        );
    }
    let bad = [
        "",
        " ",
        "nul",
        "nullx",
        "True",
        "NaN",
        "Infinity",
        "-",
        "+1",
        "01",
        "-01",
        ".5",
        "1.",
        "1.e1",
        "1e",
        "1e+",
        "0x1",
        "1_0",
        "'a'",
        "\"",
        "\"a",
        "\"\n\"",
        "\"\t\"",
        "\"\0\"",
        r#""\x41""#,
        r#""\u12""#,
        r#""\u12g4""#,
        r#""\"#,
        "[",
        "[1",
        "[1,",
        "[1,]",
        "[,1]",
        "[1 2]",
        "{",
        "{1:2}",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":1,}",
        "{,}",
        "{\"a\":1 \"b\":2}",
        "[]]",
        "{}{}",
        "1 2",
        "// x\n1",
        "1 /* x */",
        "\u{a0}1",
        "\u{feff}1",
        "\u{b}1",
    ];
    for text in bad {
        assert!(matches!(parse(text.as_bytes()), Err(JsonError::Syntax(_))), "{text:?}: {:?}", parse(text.as_bytes()));
    }
}

#[test]
fn what_divides_readers_is_refused_by_its_name() {
    let rows: &[(&[u8], JsonError)] = &[
        (b"\"\xff\"", JsonError::Encoding(1)),
        (b"\"\xed\xa0\x80\"", JsonError::Encoding(1)),
        (b"\"\xc0\xaf\"", JsonError::Encoding(1)),
        (br#""\ud800""#, JsonError::Surrogate(1)),
        (br#""\udc00""#, JsonError::Surrogate(1)),
        (br#""\ud800\ud800""#, JsonError::Surrogate(1)),
        (br#""\ud800\u0041""#, JsonError::Surrogate(1)),
        (br#""\ud800x""#, JsonError::Surrogate(1)),
        (br#" {"a":1,"b":2,"a":1}"#, JsonError::Twice(1)),
        (br#"{"a":1,"\u0061":2}"#, JsonError::Twice(0)),
        (br#"[{"a":{"":1,"":1}}]"#, JsonError::Twice(6)),
    ];
    for (bytes, expected) in rows {
        assert_eq!(parse(bytes).map(drop), Err(*expected), "{}", String::from_utf8_lossy(bytes));
    }
}

#[test]
fn nesting_and_the_number_of_values_are_limited() {
    let nested = |depth| [vec![b'['; depth], vec![b']'; depth]].concat();
    assert!(parse(&nested(64)).is_ok());
    assert_eq!(parse(&nested(65)).map(drop), Err(JsonError::Deep(64)));
    assert_eq!(parse(&vec![b'['; 4 << 20]).map(drop), Err(JsonError::Deep(64)));
    assert_eq!(parse("{\"a\":".repeat(65).as_bytes()).map(drop), Err(JsonError::Deep(64 * 5)));
    let values = |count: usize| format!("[{}]", vec!["1"; count - 1].join(","));
    assert!(parse(values(100_000).as_bytes()).is_ok());
    assert_eq!(parse(values(100_001).as_bytes()).map(drop), Err(JsonError::Many));
}

#[test]
fn each_value_keeps_the_text_it_was_written_as() {
    let text = r#" { "a" : [ 1.50 , "\u0041" ] , "b":{ } } "#;
    let value = parse(text.as_bytes()).unwrap();
    assert_eq!(value.text, text.trim());
    assert_eq!(value.member("a").unwrap().text, r#"[ 1.50 , "\u0041" ]"#);
    assert_eq!(value.member("b").unwrap().text, "{ }");
}

proptest! {
    #[test]
    fn what_is_read_here_is_read_alike_by_another_reader(text in r#"[\[\]{}:,"\\a-b0-2eE.u \-]{0,40}"#) {
        if let Ok(value) = parse(text.as_bytes())
            // A number that no double has: it is refused where numbers count.
            && let Ok(other) = serde_json::from_str::<serde_json::Value>(&text)
        {
            prop_assert_eq!(as_serde(&value), other);
        }
    }
}
