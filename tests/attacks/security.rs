//! SECURITY.md says in each cell of its table which tests prove it. Here it is held to that.

use std::collections::BTreeSet;
use std::path::Path;

use libtest_mimic::{Failed, Trial};

/// Cells that claim nothing, or nothing that a test could show.
const NO_CLAIM: [&str; 2] = ["–", "out of scope"];

/// The test.
pub fn trial() -> Trial {
    Trial::test("every cell of the table in SECURITY.md names tests, and each of them is there", || {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(root.join("SECURITY.md"))?;
        let mut mistakes = Vec::new();

        let cells: Vec<&str> = table(&text).collect();
        let unproven = |cell: &&&str| letters(cell).is_empty() && !NO_CLAIM.iter().any(|none| cell.starts_with(none));
        mistakes.extend(cells.iter().filter(unproven).map(|cell| format!("a cell names no test: {cell}")));

        let proofs = proofs(&text);
        let (used, defined): (BTreeSet<_>, BTreeSet<_>) =
            (cells.iter().flat_map(|cell| letters(cell)).collect(), proofs.iter().map(|(letter, _)| *letter).collect());
        mistakes.extend(used.symmetric_difference(&defined).map(|letter| format!("({letter}) is only in one place")));

        let mut sources = String::new();
        for directory in ["src", "tests"] {
            read_sources(&root.join(directory), &mut sources)?;
        }
        for (letter, names) in proofs {
            if names.is_empty() {
                mistakes.push(format!("({letter}) names no test"));
            }
            let is_there = |name: &&String| {
                [format!("\"{name}\""), format!("fn {name}(")].iter().any(|declared| sources.contains(declared))
            };
            let missing = names.iter().filter(|name| !is_there(name));
            mistakes.extend(missing.map(|name| format!("({letter}) names a test that is not there: {name}")));
        }
        if mistakes.is_empty() { Ok(()) } else { Err(Failed::from(mistakes.join("\n"))) }
    })
}

/// The cells of the table's body that say something, without the first of each row.
fn table(text: &str) -> impl Iterator<Item = &str> {
    let rows = text.lines().skip_while(|line| !line.starts_with("| the thief has")).skip(2);
    let rows = rows.take_while(|line| line.starts_with('|'));
    rows.flat_map(|row| row.trim_matches('|').split('|').skip(1).map(str::trim)).filter(|cell| !cell.is_empty())
}

/// The references in a text, such as `(a)`.
fn letters(text: &str) -> Vec<&str> {
    let inside = text.split('(').skip(1).filter_map(|rest| rest.split_once(')').map(|(inside, _)| inside));
    inside.filter(|inside| inside.len() == 1 && inside.chars().all(|letter| letter.is_ascii_alphanumeric())).collect()
}

/// What the list below the table says: each letter with the names of its tests.
fn proofs(text: &str) -> Vec<(&str, Vec<String>)> {
    let list = text.split("\n- (").skip(1).filter_map(|item| {
        let (letter, rest) = item.split_once(") ")?;
        (letter.len() == 1).then(|| (letter, rest.split("\n\n").next().unwrap_or(rest)))
    });
    let quoted = |item: &str| -> Vec<String> {
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        item.split('"').skip(1).step_by(2).map(words).collect()
    };
    list.map(|(letter, item)| (letter, quoted(item))).collect()
}

fn read_sources(directory: &Path, into: &mut String) -> std::io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            read_sources(&path, into)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push_str(&std::fs::read_to_string(path)?);
        }
    }
    Ok(())
}
