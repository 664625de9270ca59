use proptest::prelude::*;

use super::super::json::parse;
use super::*;

fn of(text: &str) -> Result<String, Inexact> {
    canonical(&parse(text.as_bytes()).unwrap())
}

/// RFC 8785, section 3.2.2 and 3.2.3, and appendix F.
#[test]
fn the_examples_of_the_rfc_come_out_as_it_says() {
    let sample = r#"{
        "numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
        "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/",
        "literals": [null, true, false]
    }"#;
    // The first number has 17 digits where 16 name its double: the RFC rounds it away, and here it is refused.
    assert_eq!(of(sample), Err(Inexact));
    let expected = r#"{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],"string":"€$\u000f\nA'B\"\\\\\"/"}"#;
    assert_eq!(of(&sample.replace("333333333.33333329", "333333333.3333333")).unwrap(), expected);

    let sorted = r#"{"\u20ac": "Euro Sign", "\r": "Carriage Return", "\ufb33": "Hebrew Letter Dalet With Dagesh", "1": "One",
        "\ud83d\ude00": "Emoji: Grinning Face", "\u0080": "Control", "\u00f6": "Latin Small Letter O With Diaeresis"}"#;
    let expected = "{\"\\r\":\"Carriage Return\",\"1\":\"One\",\"\u{80}\":\"Control\",\"ö\":\"Latin Small Letter O With Diaeresis\",\
                    \"€\":\"Euro Sign\",\"😀\":\"Emoji: Grinning Face\",\"\u{fb33}\":\"Hebrew Letter Dalet With Dagesh\"}";
    assert_eq!(of(sorted).unwrap(), expected);
}

/// RFC 8785, appendix B: doubles by their bits.
#[test]
fn doubles_are_written_as_ecmascript_writes_them() {
    let rows = [
        (0x0000_0000_0000_0000, "0"),
        (0x8000_0000_0000_0000, "0"),
        (0x0000_0000_0000_0001, "5e-324"),
        (0x8000_0000_0000_0001, "-5e-324"),
        (0x7fef_ffff_ffff_ffff, "1.7976931348623157e+308"),
        (0xffef_ffff_ffff_ffff, "-1.7976931348623157e+308"),
        (0x4340_0000_0000_0000, "9007199254740992"),
        (0xc340_0000_0000_0000, "-9007199254740992"),
        (0x4430_0000_0000_0000, "295147905179352830000"),
        (0x44b5_2d02_c7e1_4af5, "9.999999999999997e+22"),
        (0x44b5_2d02_c7e1_4af6, "1e+23"),
        (0x44b5_2d02_c7e1_4af7, "1.0000000000000001e+23"),
        (0x444b_1ae4_d6e2_ef4e, "999999999999999700000"),
        (0x444b_1ae4_d6e2_ef4f, "999999999999999900000"),
        (0x444b_1ae4_d6e2_ef50, "1e+21"),
        (0x3eb0_c6f7_a0b5_ed8c, "9.999999999999997e-7"),
        (0x3eb0_c6f7_a0b5_ed8d, "0.000001"),
        (0x41b3_de43_5555_5553, "333333333.3333332"),
        (0x41b3_de43_5555_5554, "333333333.33333325"),
        (0x41b3_de43_5555_5555, "333333333.3333333"),
        (0x41b3_de43_5555_5556, "333333333.3333334"),
        (0x41b3_de43_5555_5557, "333333333.33333343"),
        (0xbecb_f647_612f_3696, "-0.0000033333333333333333"),
        (0x4314_3ff3_c1cb_0959, "1424953923781206.2"),
    ];
    for (bits, expected) in rows {
        let double = f64::from_bits(bits);
        assert_eq!(Decimal::shortest(double).ecma_script(), expected, "{bits:x}");
        assert_eq!(of(expected).unwrap(), expected, "the canonical form of the canonical form");
    }
}

#[test]
fn one_number_has_one_form_and_two_have_two() {
    let same = [
        ("100", &["1e2", "1E+2", "100.0", "100.00e0", "0.1e3", "1000e-1"][..]),
        ("0", &["0.0", "-0", "-0.0", "0e0", "0e400", "0e-99999999999999999999"]),
        ("1e+21", &["1000000000000000000000", "1e21"]),
        ("0.1", &["1e-1", "0.10"]),
        ("-1.5", &["-15e-1"]),
    ];
    for (expected, texts) in same {
        for text in texts {
            assert_eq!(of(text).as_deref(), Ok(expected), "{text}");
        }
    }
    let inexact = [
        "9007199254740993",
        "-9007199254740993",
        "9007199254740993.0",
        "9007199254740993e0",
        "1152921504606846976",
        "18446744073709551615",
        "1e400",
        "-1e400",
        "1e-400",
        "1e99999999999999999999",
        "1e-99999999999999999999",
        "0.1000000000000000055",
        "0.10000000000000001",
        "1.00000000000000000000001",
        "123456789012345678901234567890",
    ];
    for text in inexact {
        assert_eq!(of(text), Err(Inexact), "{text}");
        assert_eq!(of(&format!(r#"{{"a":[{text}]}}"#)), Err(Inexact), "{text}");
    }
}

proptest! {
    #[test]
    fn every_double_comes_back_from_its_canonical_form(double in prop::num::f64::NORMAL | prop::num::f64::SUBNORMAL) {
        let form = Decimal::shortest(double).ecma_script();
        prop_assert_eq!(form.parse::<f64>().unwrap(), double);
        prop_assert_eq!(of(&form).unwrap(), form);
    }

    #[test]
    fn integers_up_to_2_to_the_53_are_written_as_they_are(number in -(1_i64 << 53)..=(1 << 53)) {
        prop_assert_eq!(of(&number.to_string()).unwrap(), number.to_string());
    }

    #[test]
    fn decimals_of_fifteen_digits_are_never_refused(digits in 0_i64..1_000_000_000_000_000, exponent in -20_i32..20) {
        let text = format!("{digits}e{exponent}");
        prop_assert!(of(&text).is_ok());
    }

    #[test]
    fn the_form_does_not_depend_on_the_order_of_members_nor_on_space(
        members in prop::collection::btree_map(any::<String>(), any::<i32>(), 0..8), space in "[ \n\t\r]{0,3}"
    ) {
        let write = |members: &mut dyn Iterator<Item = (&String, &i32)>| {
            let members: Vec<_> = members.map(|(name, value)| {
                format!("{space}{}{space}:{space}{value}{space}", serde_json::to_string(name).unwrap())
            }).collect();
            format!("{{{}}}", members.join(","))
        };
        let (one, other) = (write(&mut members.iter()), write(&mut members.iter().rev()));
        let one = of(if members.is_empty() { "{}" } else { &one }).unwrap();
        prop_assert_eq!(&one, &of(if members.is_empty() { "{}" } else { &other }).unwrap());
        prop_assert_eq!(serde_json::from_str::<std::collections::BTreeMap<String, i32>>(&one).unwrap(), members);
    }
}
