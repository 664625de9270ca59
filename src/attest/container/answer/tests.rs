use super::*;
use crate::attest::tests::evidence;

const ID: &str = "4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f";

fn answer(name: &str, image: &str, config: &str) -> Answer {
    let json = format!(
        r#"{{"Id":"{ID}","Name":"{name}","Image":"{image}","State":{{"Running":true,"Pid":7,"Paused":false}},"Config":{config}}}"#
    );
    serde_json::from_str(&json).expect("valid")
}

fn selectors(answer: &Answer) -> Vec<String> {
    evidence(answer.findings(Kind::Docker)).selectors.iter().map(ToString::to_string).collect()
}

#[test]
fn the_selectors_are_named_as_spire_names_them() {
    let config = r#"{"Image":"registry.example/web:1","Labels":{"app":"web","com.example.tier":"a:b"},
        "Env":["PATH=/bin","EMPTY=","A=b=c"]}"#;
    let image = format!("sha256:{}", "0a".repeat(32));
    assert_eq!(
        selectors(&answer("/web-1", &image, config)),
        [
            "docker:env:A=b=c".to_owned(),
            "docker:env:EMPTY=".to_owned(),
            "docker:env:PATH=/bin".to_owned(),
            format!("docker:image_config_digest:{image}"),
            "docker:image_id:registry.example/web:1".to_owned(),
            "docker:label:app:web".to_owned(),
            "docker:label:com.example.tier:a:b".to_owned(),
            "docker:name:web-1".to_owned(),
        ]
    );
}

#[test]
fn what_cannot_be_written_as_one_selector_is_left_out_with_a_note() {
    let long = "x".repeat(5000);
    let config = format!(
        r#"{{"Labels":{{"a":"1\n2","b:c":"d","":"e","long":"{long}","good":"yes"}},"Env":["TWO=1\n2","LONG={long}","GOOD=yes"]}}"#
    );
    let answer = answer("/web", ID, &config);
    let found = evidence(answer.findings(Kind::Docker));
    let texts: Vec<_> = found.selectors.iter().map(ToString::to_string).collect();
    let image = format!("docker:image_config_digest:sha256:{ID}");
    assert_eq!(texts, ["docker:env:GOOD=yes", &image, "docker:label:good:yes", "docker:name:web"]);
    assert_eq!(found.gaps, []);
    for name in ["`a`", "`b:c`", "``", "`long`", "`TWO`", "`LONG`"] {
        assert!(found.notes.iter().any(|note| note.text.contains(name)), "{name}");
    }
    assert!(found.notes.iter().all(|note| note.text.len() < 200), "a value is not repeated");
}

#[test]
fn what_the_engine_does_not_say_rightly_is_not_known() {
    let gaps = |answer: &Answer| -> Vec<&str> {
        evidence(answer.findings(Kind::Docker)).gaps.iter().flat_map(|gap| gap.keys.iter().copied()).collect()
    };
    assert_eq!(gaps(&answer("/web", "bb:1", "{}")), ["image_config_digest"], "a name is no digest");
    assert_eq!(gaps(&answer("/web", "", "{}")), ["image_config_digest"]);
    assert_eq!(gaps(&answer("", ID, "{}")), ["name"]);
    assert_eq!(gaps(&answer("/a b", ID, "{}")), ["name"]);
    let many: Vec<String> = (0..=MAX_LABELS).map(|number| format!("\"l{number}\":\"\"")).collect();
    assert_eq!(gaps(&answer("/web", ID, &format!("{{\"Labels\":{{{}}}}}", many.join(",")))), ["label"]);
    let many: Vec<String> = (0..=MAX_VARIABLES).map(|number| format!("\"V{number}=\"")).collect();
    assert_eq!(gaps(&answer("/web", ID, &format!("{{\"Env\":[{}]}}", many.join(",")))), ["env"]);
}

#[test]
fn an_image_that_is_named_by_its_manifest_has_no_digest_of_its_configuration() {
    let mut answer = answer("/web", &format!("sha256:{ID}"), "{}");
    answer.image_manifest_descriptor = Some(IgnoredAny);
    let found = evidence(answer.findings(Kind::Docker));
    assert!(found.gap("docker", "image_config_digest").is_some_and(|gap| gap.why.contains("containerd")));
}

#[test]
fn absent_labels_and_variables_are_none() {
    let answer = answer("/web", ID, r#"{"Labels":null,"Env":null,"Image":null}"#);
    assert_eq!(selectors(&answer), [format!("docker:image_config_digest:sha256:{ID}"), "docker:name:web".to_owned()]);
}
