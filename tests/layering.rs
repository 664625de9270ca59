//! The shape of the source, read from the source: which row may know which, and what may be done where.
//!
//! The order of rows is that of the `pub mod` lines in `src/lib.rs`; there is no second list. Test code is exempt:
//! a test may look at everything its subject is used with.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// The most lines a file may have.
const MAX_LINES: usize = 600;
/// The one module that may have `unsafe` code.
const UNSAFE: &str = "sys";
/// The one file that may write files.
const WRITER: &str = "base/durable.rs";
/// What writes a file. Removing a stale socket is no writing.
const WRITES: &[&str] =
    &["fs::write", "fs::copy", "fs::rename", "File::create", "File::options", "OpenOptions", "O_CREAT", "O_WRONLY"];

#[test]
fn a_file_imports_only_from_its_own_module_and_from_rows_above_it() {
    let rows = rows();
    refuse_each(|file, broken| {
        for (line, name) in file.imports() {
            let Some(imported) = rows.iter().position(|row| row.name == name) else { continue };
            // The binary and the library's root stand below every row.
            let own = rows.iter().position(|row| row.name == file.module()).unwrap_or(rows.len());
            if imported > own {
                broken.push(line, format!("`{}` imports from `{name}`, a row below it", file.module()));
            }
        }
    });
}

#[test]
fn what_the_feature_client_builds_knows_nothing_of_the_agent() {
    let rows = rows();
    let is_agents = |name: &str| rows.iter().any(|row| row.name == name && row.agent_only);
    let is_clients = |name: &str| rows.iter().any(|row| row.name == name && !row.agent_only);
    assert!(is_clients("client") && is_agents("agent"), "the features are read from lib.rs");
    refuse_each(|file, broken| {
        let imports = file.imports().into_iter().filter(|_| is_clients(file.module()));
        for (line, name) in imports.filter(|(_, name)| is_agents(name)) {
            broken.push(line, format!("`{}` is in the feature `client` and imports from `{name}`", file.module()));
        }
    });
}

#[test]
fn no_file_is_longer_than_one_person_reads_at_once() {
    let too_long = |file: &Source| file.lines > MAX_LINES;
    let found: Vec<_> = every_file().into_iter().filter(too_long).map(|file| (file.path, file.lines)).collect();
    assert!(found.is_empty(), "more than {MAX_LINES} lines: {found:?}");
}

#[test]
fn unsafe_code_is_in_sys_alone() {
    refuse_each(|file, broken| {
        let elsewhere = file.module() != UNSAFE;
        for line in file.lines_with_word("unsafe").into_iter().filter(|_| elsewhere) {
            broken.push(line, "`unsafe` outside src/sys".to_owned());
        }
    });
}

#[test]
fn files_are_written_by_the_durable_writer_alone() {
    refuse_each(|file, broken| {
        for call in WRITES.iter().filter(|_| file.path != Path::new(WRITER)) {
            for line in file.lines_with_word(call) {
                broken.push(line, format!("`{call}` outside {WRITER}"));
            }
        }
    });
}

#[test]
fn nothing_is_unwrapped() {
    refuse_each(|file, broken| {
        for line in file.lines_with_word("unwrap()") {
            broken.push(line, "`unwrap()`: say what holds with `expect`, or return the error".to_owned());
        }
    });
}

#[test]
fn the_reader_of_sources_sees_what_it_must_and_nothing_in_comments_strings_and_tests() {
    let file = Source::new(
        PathBuf::from("base/x.rs"),
        r##"
        //! crate::cli in a comment, and 'quoted'
        use crate::{attest::{Attested, systemd}, config};
        /* crate::http /* nested */ */
        const TEXT: &str = "crate::stream // not a comment"; const C: char = '"';
        const RAW: &str = r#"crate::store "quoted" "#;
        fn f<'a>() { crate::peer::look(); y.unwrap() }
        #[cfg(test)]
        mod tests { use crate::agent; fn g() { x.unwrap() } }
        fn h() { let _ = crate::trust; }
        #[cfg(test)]
        use crate::api;
        "##,
    );
    let names: Vec<String> = file.imports().into_iter().map(|(_, name)| name).collect();
    assert_eq!(names, ["attest", "config", "peer", "trust"]);
    assert_eq!(file.lines_with_word("unwrap()"), [7]);
    let nested = Source::new(PathBuf::from("base/mod.rs"), "use super::cli; mod inner { use super::x; }");
    assert_eq!(nested.imports()[0].1, "cli", "from the top of a row, `super` is the root");
}

#[test]
fn every_test_that_security_md_names_is_there() {
    let text = read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("SECURITY.md"));
    let list =
        text.split("The tests, by suite and name:").nth(1).expect("the list").split("\n\n").nth(1).expect("the list");
    let named = refuse_unknown_tests(list);
    assert!(named > 20, "the list is read: {named}");
}

#[test]
fn every_control_has_one_line_and_every_test_it_names_is_there() {
    let text = read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/controls.md"));
    let rows = text.lines().filter(|line| line.starts_with("| R"));
    let rows: Vec<Vec<&str>> = rows.map(|row| row.trim_matches('|').split('|').map(str::trim).collect()).collect();
    let numbers: Vec<&str> = rows.iter().map(|cells| cells[0]).collect();
    let wanted: Vec<String> = (1..=55).map(|number| format!("R{number}")).collect();
    assert_eq!(numbers, wanted);
    for cells in rows {
        let [number, _, state, how, shown] = cells[..] else { panic!("five cells: {cells:?}") };
        match state {
            // Nothing is claimed without a test.
            "**met**" | "**in part**" => assert!(refuse_unknown_tests(shown) > 0 && how != "–", "{number}"),
            "**planned**" | "**elsewhere**" => assert_eq!(shown, "–", "{number}"),
            other => panic!("{number}: `{other}` is no state"),
        }
    }
}

/// Fails for a test that is named and is not there; how many are named. Backticks hold a suite, and quotation marks the
/// names of tests in the suite before them.
fn refuse_unknown_tests(list: &str) -> usize {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut suite, mut named) = (String::new(), 0);
    for (number, part) in list.split(['`', '"']).enumerate() {
        let part = part.split_whitespace().collect::<Vec<_>>().join(" ");
        if number % 2 == 0 {
            continue;
        }
        if part.starts_with("tests/") || part.starts_with("src/") {
            suite = below(&manifest.join(&part)).iter().map(|path| read(path)).collect();
        } else {
            // The whole name: a function's, or a text's.
            let is_there = suite.contains(&format!("fn {part}(")) || suite.contains(&format!("\"{part}\""));
            assert!(is_there, "no test is named \"{part}\"");
            named += 1;
        }
    }
    named
}

#[test]
fn every_cell_of_the_table_in_security_md_names_its_tests() {
    let text = read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("SECURITY.md"));
    let rows = text.lines().skip_while(|line| !line.starts_with("| the thief has")).skip(2);
    let rows = rows.take_while(|line| line.starts_with('|'));
    let cells = rows.flat_map(|row| row.trim_matches('|').split('|').skip(1).map(str::trim));
    let mut used = BTreeSet::new();
    for cell in cells.filter(|cell| !cell.is_empty() && !cell.starts_with('–') && !cell.starts_with("out of scope")) {
        let named = references(cell);
        assert!(!named.is_empty(), "no test stands behind this cell: {cell}");
        used.extend(named);
    }
    let listed = text.lines().filter_map(|line| line.strip_prefix("- ")).filter(|line| line.starts_with('('));
    let listed: BTreeSet<&str> = listed.filter_map(|line| references(line).first().copied()).collect();
    assert_eq!(used, listed, "the table and the list have the same references");
}

/// What a text refers to, as in `(a)`.
fn references(text: &str) -> Vec<&str> {
    let inside = text.split('(').skip(1).filter_map(|rest| rest.split_once(')').map(|(inside, _)| inside));
    inside.filter(|inside| inside.len() == 1).collect()
}

/// A row of `src/lib.rs`.
struct Row {
    name: String,
    agent_only: bool,
}

fn rows() -> Vec<Row> {
    let lib = read(&root().join("lib.rs"));
    let mut rows = Vec::new();
    let mut agent_only = false;
    for line in lib.lines().map(str::trim) {
        match line.strip_prefix("pub mod ").and_then(|rest| rest.strip_suffix(';')) {
            Some(name) => {
                rows.push(Row { name: name.to_owned(), agent_only });
                agent_only = false;
            }
            None => agent_only = line == "#[cfg(feature = \"agent\")]",
        }
    }
    assert!(rows.len() > 20, "lib.rs lists the rows");
    rows
}

/// A source file without its comments, strings and test code; what is left out became spaces, so lines are right.
struct Source {
    path: PathBuf,
    lines: usize,
    code: String,
}

impl Source {
    fn new(path: PathBuf, text: &str) -> Self {
        Self { path, lines: text.lines().count(), code: without_tests(&without_text(text)) }
    }

    /// The row it belongs to.
    fn module(&self) -> &str {
        let first = self.path.components().next().expect("a path below src").as_os_str().to_str();
        first.expect("names are text").trim_end_matches(".rs")
    }

    fn is_test(&self) -> bool {
        self.path.components().any(|part| part.as_os_str() == "tests" || part.as_os_str() == "tests.rs")
    }

    /// Every name directly below the crate's root that is used, with its line.
    fn imports(&self) -> Vec<(usize, String)> {
        let parts = self.path.components().count();
        let at_the_top = parts == 1 || parts == 2 && self.path.ends_with("mod.rs");
        let roots: &[&str] = if at_the_top { &["crate::", "super::"] } else { &["crate::"] };
        let mut found = Vec::new();
        for root in roots {
            for (start, _) in self.code.match_indices(root) {
                if self.code[..start].ends_with(is_word) {
                    continue;
                }
                let line = self.line(start);
                found.extend(names(&self.code[start + root.len()..]).into_iter().map(|name| (line, name)));
            }
        }
        found.sort();
        found
    }

    fn lines_with_word(&self, word: &str) -> Vec<usize> {
        let places = self.code.match_indices(word).filter(|(start, _)| {
            let (before, after) = (&self.code[..*start], &self.code[start + word.len()..]);
            !before.ends_with(is_word) && !after.starts_with(is_word)
        });
        places.map(|(start, _)| self.line(start)).collect()
    }

    fn line(&self, start: usize) -> usize {
        self.code[..start].matches('\n').count() + 1
    }
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// The first name of a path, or the first names of a group of paths.
fn names(path: &str) -> Vec<String> {
    let word = |text: &str| text.chars().take_while(|&c| is_word(c)).collect::<String>();
    let Some(group) = path.strip_prefix('{') else { return vec![word(path)] };
    let (mut depth, mut names, mut expected) = (1, Vec::new(), true);
    for (at, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => expected = true,
            character if is_word(character) && expected => {
                names.push(word(&group[at..]));
                expected = false;
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    names
}

/// The source with comments, strings and character literals blanked.
fn without_text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if let (Some(length), false) = (raw_string(rest), out.ends_with(is_word)) {
            length
        } else if first == '"' {
            quoted(rest, '"')
        } else if first == '\'' && is_character(rest) {
            quoted(rest, '\'')
        } else {
            out.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        };
        blank(&mut out, &rest[..length]);
        rest = &rest[length..];
    }
    out
}

fn blank(out: &mut String, text: &str) {
    out.extend(text.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
}

fn block_comment(text: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < text.len() {
        let step = match &text.as_bytes()[at..] {
            [b'/', b'*', ..] => {
                depth += 1;
                2
            }
            [b'*', b'/', ..] => {
                depth -= 1;
                2
            }
            _ => 1,
        };
        at += step;
        if depth == 0 {
            break;
        }
    }
    at
}

/// The length of the raw string (`r".."`, `r#".."#`) that `text` starts with, if it does.
fn raw_string(text: &str) -> Option<usize> {
    let hashes = text.strip_prefix('r')?.chars().take_while(|&c| c == '#').count();
    let open = 1 + hashes + 1;
    let body = text.get(open..).filter(|_| text.as_bytes().get(open - 1) == Some(&b'"'))?;
    let close = format!("\"{}", "#".repeat(hashes));
    Some(body.find(&close).map_or(text.len(), |end| open + end + close.len()))
}

fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, character) in text.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            character if character == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Whether a quotation mark begins a character and not a lifetime.
fn is_character(text: &str) -> bool {
    let mut characters = text.chars().skip(1);
    matches!((characters.next(), characters.next()), (Some('\\'), _) | (_, Some('\'')))
}

/// Source without strings, with every item under `#[cfg(test)]` blanked.
fn without_tests(code: &str) -> String {
    let mut out = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(start) = rest.find("#[cfg(test)]") {
        out.push_str(&rest[..start]);
        let length = item(&rest[start..]);
        blank(&mut out, &rest[start..start + length]);
        rest = &rest[start + length..];
    }
    out + rest
}

/// Where the item that `code` starts with ends: at its `;`, or at the end of its braces.
fn item(code: &str) -> usize {
    let mut depth = 0;
    for (at, character) in code.char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ';' if depth == 0 => return at + 1,
            _ => continue,
        }
        if depth == 0 && !code[at + 1..].trim_start().starts_with(';') {
            return at + 1;
        }
    }
    code.len()
}

/// What a rule found in one file.
#[derive(Default)]
struct Broken(Vec<(usize, String)>);

impl Broken {
    fn push(&mut self, line: usize, what: String) {
        self.0.push((line, what));
    }
}

/// Fails with every place outside test code where the rule is broken.
fn refuse_each(rule: impl Fn(&Source, &mut Broken)) {
    let mut report = String::new();
    let mut sources = 0;
    for file in every_file().iter().filter(|file| !file.is_test()) {
        let mut broken = Broken::default();
        rule(file, &mut broken);
        sources += 1;
        for (line, what) in broken.0 {
            let _ = writeln!(report, "src/{}:{line}: {what}", file.path.display());
        }
    }
    assert!(sources > 50, "the sources are found");
    assert!(report.is_empty(), "\n{report}");
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()))
}

fn every_file() -> Vec<Source> {
    let root = root();
    let source = |path: PathBuf| Source::new(path.strip_prefix(&root).expect("below src").to_owned(), &read(&path));
    below(&root).into_iter().map(source).collect()
}

/// The Rust files below a directory.
fn below(directory: &Path) -> Vec<PathBuf> {
    let (mut files, mut directories) = (Vec::new(), vec![directory.to_owned()]);
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).expect("it can be listed") {
            let path = entry.expect("it can be listed").path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}
