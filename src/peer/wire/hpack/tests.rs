//! The decoder against RFC 7541 and against an encoder of the tests.

use proptest::prelude::*;

use super::super::tests::encoder::{Encoder, How};
use super::*;

#[test]
fn every_example_of_rfc_7541_appendix_c_decodes() {
    const DATES: [&str; 2] = ["Mon, 21 Oct 2013 20:13:21 GMT", "Mon, 21 Oct 2013 20:13:22 GMT"];
    const COOKIE: &str = "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1";
    let get = |scheme, path, rest: &[(&'static str, &'static str)]| {
        let mut fields =
            vec![(":method", "GET"), (":scheme", scheme), (":path", path), (":authority", "www.example.com")];
        fields.extend(rest);
        fields
    };
    let requests = [
        (get("http", "/", &[]), 57),
        (get("http", "/", &[("cache-control", "no-cache")]), 110),
        (get("https", "/index.html", &[("custom-key", "custom-value")]), 164),
    ];
    let answer = |status, date, rest: &[(&'static str, &'static str)]| {
        let mut fields = vec![(":status", status), ("cache-control", "private"), ("date", date)];
        fields.push(("location", "https://www.example.com"));
        fields.extend(rest);
        fields
    };
    let responses = [
        (answer("302", DATES[0], &[]), 222),
        (answer("307", DATES[0], &[]), 222),
        (answer("200", DATES[1], &[("content-encoding", "gzip"), ("set-cookie", COOKIE)]), 215),
    ];
    let one = |name, value, size| [(vec![(name, value)], size)];

    type Blocks<'a> = &'a [(Vec<(&'static str, &'static str)>, usize)];
    let rows: [(&str, usize, &[&str], Blocks<'_>); 8] = [
        (
            "C.2.1",
            4096,
            &["400a637573746f6d2d6b65790d637573746f6d2d686561646572"],
            &one("custom-key", "custom-header", 55),
        ),
        ("C.2.2", 4096, &["040c2f73616d706c652f70617468"], &one(":path", "/sample/path", 0)),
        ("C.2.3", 4096, &["100870617373776f726406736563726574"], &one("password", "secret", 0)),
        ("C.2.4", 4096, &["82"], &one(":method", "GET", 0)),
        (
            "C.3",
            4096,
            &[
                "828684410f7777772e6578616d706c652e636f6d",
                "828684be58086e6f2d6361636865",
                "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
            ],
            &requests,
        ),
        (
            "C.4",
            4096,
            &[
                "828684418cf1e3c2e5f23a6ba0ab90f4ff",
                "828684be5886a8eb10649cbf",
                "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
            ],
            &requests,
        ),
        (
            "C.5",
            256,
            &[
                "4803333032580770726976617465611d4d6f6e2c203231204f637420323031332032303a31333a323120474d546e1768747470\
                 733a2f2f7777772e6578616d706c652e636f6d",
                "4803333037c1c0bf",
                "88c1611d4d6f6e2c203231204f637420323031332032303a31333a323220474d54c05a04677a69707738666f6f3d4153444a4b\
                 48514b425a584f5157454f50495541585157454f49553b206d61782d6167653d333630303b2076657273696f6e3d31",
            ],
            &responses,
        ),
        (
            "C.6",
            256,
            &[
                "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97c8e9ae82\
                 ae43d3",
                "4883640effc1c0bf",
                "88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335dfdfcd5b3960d5\
                 af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007",
            ],
            &responses,
        ),
    ];
    for (section, table_size, blocks, expected) in rows {
        let mut decoder = Decoder::new();
        decoder.dynamic.resize(table_size).expect("within the limit");
        for (block, (fields, size)) in blocks.iter().zip(expected) {
            let decoded = decoder.decode(&hex(block)).unwrap_or_else(|error| panic!("{section}: {error}"));
            let decoded: Vec<_> = decoded.iter().map(|field| (text(field.name), text(field.value))).collect();
            assert_eq!(&decoded, fields, "{section}");
            assert_eq!(decoder.dynamic.size(), *size, "{section}");
        }
    }
}

#[test]
fn the_integers_of_rfc_7541_appendix_c_1_go_both_ways() {
    for (value, prefix, bytes) in [(10, 5, "0a"), (1337, 5, "1f9a0a"), (42, 8, "2a")] {
        let bytes = hex(bytes);
        assert_eq!(integer(&mut bytes.as_slice(), prefix), Ok(value));
        let mut written = Vec::new();
        put_integer(&mut written, 0, prefix, value);
        assert_eq!(written, bytes);
    }
}

#[test]
fn codes_derived_from_lengths_are_those_of_appendix_b() {
    let rows = [
        (0, 0x1ff8, 13),
        (9, 0xffffea, 24),
        (10, 0x3ffffffc, 30),
        (22, 0x3ffffffe, 30),
        (48, 0x0, 5),
        (92, 0x7fff0, 19),
        (122, 0x7b, 7),
        (127, 0xffffffc, 28),
        (249, 0xffffffe, 28),
        (255, 0x3ffffee, 26),
        (256, 0x3fffffff, 30),
    ];
    for (symbol, code, length) in rows {
        assert_eq!(code_of(symbol), (code, length), "symbol {symbol}");
    }
}

#[test]
fn malformed_blocks_are_refused() {
    use HpackError::*;
    let rows: &[(&str, &str, HpackError)] = &[
        ("index 0", "80", Index),
        ("index above an empty table", "be", Index),
        ("name index above an empty table", "7e0161", Index),
        ("unfinished index", "ff", Truncated),
        ("index of five bytes behind its prefix", "ffffffffff01", Integer),
        ("endless integer", "ffffffffffffffffffffffffffffffffffff", Integer),
        ("literal without a name", "40", Truncated),
        ("literal without a value", "400161", Truncated),
        ("name longer than the block", "400561", Truncated),
        ("value longer than the block", "0001617f", Truncated),
        ("value far longer than the block", "0001617fffffff7f61", Truncated),
        ("table size above ours", "3fe21f", TableSize),
        ("table size behind a field", "8220", LateTableSize),
        ("EOS in a string", "00016184ffffffff", Huffman),
        ("a whole byte of padding", "00016182 07ff", Huffman),
        ("padding of zeros", "00016181 00", Huffman),
        ("a code cut off", "00016181 fe", Huffman),
    ];
    for (what, block, error) in rows {
        assert_eq!(Decoder::new().decode(&hex(block)).err(), Some(*error), "{what}");
    }
}

#[test]
fn unusual_but_valid_blocks_decode() {
    let rows: &[(&str, &str, usize)] = &[
        ("nothing", "", 0),
        ("two size updates", "203fe11f82", 1),
        ("a size update alone", "3fe11f", 0),
        ("an integer with idle bytes behind its value", "3f80 8080 00 82", 1),
        ("an empty name and value", "000000", 1),
        ("an empty Huffman string", "00016180", 1),
        ("seven bits of padding", "000161 84 0000007f", 1),
    ];
    for (what, block, fields) in rows {
        let mut decoder = Decoder::new();
        assert_eq!(decoder.decode(&hex(block)).map(|list| list.iter().count()), Ok(*fields), "{what}");
    }
}

#[test]
fn lists_are_bounded_in_bytes_and_in_fields() {
    let mut decoder = Decoder::new();
    assert!(decoder.decode(&[0x82; MAX_FIELDS]).is_ok());
    assert_eq!(decoder.decode(&[0x82; MAX_FIELDS + 1]).err(), Some(HpackError::TooManyFields));

    let mut encoder = Encoder::new();
    let large = "x".repeat(4000);
    let mut bomb = encoder.block(&[("a", large.as_str())], How::Incremental, false);
    bomb.extend([0xbe; 7]);
    assert!(Decoder::new().decode(&bomb).is_ok());
    bomb.push(0xbe);
    assert_eq!(Decoder::new().decode(&bomb).err(), Some(HpackError::ListTooLarge));
}

#[test]
fn a_field_larger_than_the_table_empties_it() {
    let mut encoder = Encoder::new();
    let mut decoder = Decoder::new();
    decoder.decode(&encoder.block(&[("a", "b")], How::Incremental, false)).expect("valid");
    let large = "x".repeat(5000);
    let list = decoder.decode(&encoder.block(&[("a", large.as_str())], How::Incremental, false)).expect("valid");
    assert_eq!(list.iter().count(), 1);
    assert_eq!(decoder.dynamic.size(), 0);
    assert_eq!(decoder.decode(&[0xbe]).err(), Some(HpackError::Index));
}

#[test]
fn a_name_may_come_from_the_entry_that_its_field_evicts() {
    let mut encoder = Encoder::new();
    let mut decoder = Decoder::new();
    for value in ["x".repeat(4000), "y".repeat(4000)] {
        let block = encoder.block(&[("name", value.as_str())], How::Incremental, false);
        let list = decoder.decode(&block).expect("valid");
        let decoded = list.iter().next().map(|field| (text(field.name).to_owned(), text(field.value).to_owned()));
        assert_eq!(decoded, Some(("name".to_owned(), value)));
    }
}

#[test]
fn memory_stays_bounded_while_entries_come_and_go() {
    let mut encoder = Encoder::new();
    let mut decoder = Decoder::new();
    for nth in 0..2000 {
        let value = "v".repeat(nth * 7 % 900);
        decoder.decode(&encoder.block(&[("grpc-timeout", &value)], How::Incremental, nth % 2 == 0)).expect("valid");
        assert!(decoder.footprint() < 32 * 1024);
    }
}

#[test]
fn what_is_encoded_without_indexing_keeps_its_meaning_and_leaves_tables_alone() {
    let mut decoder = Decoder::new();
    let block = hex("8310087061737377 6f726406736563726574 40016101 62");
    let mut out = Vec::new();
    decoder.decode(&block).expect("valid").iter().for_each(|field| encode_without_indexing(field, &mut out));
    assert_eq!(out, hex("83 100870617373776f726406736563726574 0001610162"));
    let mut other = Decoder::new();
    let again: Vec<_> = other.decode(&out).expect("valid").iter().map(|field| field.form).collect();
    assert_eq!(again, [Form::Static(3), Form::NeverIndexed, Form::Literal]);
    assert_eq!(other.dynamic.size(), 0);
}

fn how() -> impl Strategy<Value = How> {
    prop_oneof![Just(How::Indexed), Just(How::Incremental), Just(How::Without), Just(How::Never)]
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![Just(b":path".to_vec()), Just(b"cookie".to_vec()), prop::collection::vec(any::<u8>(), 0..20)]
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![Just(b"/".to_vec()), prop::collection::vec(any::<u8>(), 0..200)]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_an_encoder_writes_decodes_to_the_same_fields(
        blocks in prop::collection::vec((
            prop::option::of(0..=4096usize),
            prop::collection::vec((name(), value(), how(), any::<bool>()), 0..20),
        ), 1..12),
    ) {
        let mut encoder = Encoder::new();
        let mut decoder = Decoder::new();
        for (size, fields) in blocks {
            let mut block = Vec::new();
            if let Some(size) = size {
                encoder.resize(size, &mut block);
            }
            for (name, value, how, huffman) in &fields {
                encoder.field(name, value, *how, *huffman, &mut block);
            }
            let list = decoder.decode(&block).expect("what the encoder wrote is valid");
            let decoded: Vec<_> = list.iter().map(|field| (field.name.to_vec(), field.value.to_vec())).collect();
            let expected: Vec<_> = fields.into_iter().map(|(name, value, ..)| (name, value)).collect();
            prop_assert_eq!(decoded, expected);
        }
    }

    #[test]
    fn no_block_makes_the_decoder_panic_or_outgrow_its_bounds(
        blocks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..400), 1..8),
    ) {
        let mut decoder = Decoder::new();
        for block in blocks {
            let failed = decoder.decode(&block).is_err();
            prop_assert!(decoder.dynamic.size() <= table::MAX_SIZE);
            prop_assert!(decoder.footprint() < 256 * 1024);
            if failed {
                break;
            }
        }
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text")
}

fn hex(digits: &str) -> Vec<u8> {
    let digits: Vec<u8> = digits.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let digit = |byte: u8| (byte as char).to_digit(16).expect("a hex digit") as u8;
    digits.chunks_exact(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}
