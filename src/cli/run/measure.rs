//! What a command line will run: which program, and which script of it.
//!
//! The agent measures what is named here; nothing here is evidence.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The most of a `#!` line the kernel reads.
const SHEBANG_BYTES: u64 = 256;
/// How many interpreters may stand behind one another, as in the kernel.
const MAX_INTERPRETERS: usize = 4;

/// Interpreters: how their names begin, options that take the next argument as their value, and options after which
/// there is no script.
const INTERPRETERS: &[(&str, &[&str], &[&str])] = &[
    ("python", &["-W", "-X"], &["-c", "-m"]),
    ("node", &["-r", "--require", "--import", "--loader", "-C", "--conditions"], &["-e", "--eval", "-p", "--print"]),
    ("bash", &["-o", "-O", "+o", "+O", "--rcfile", "--init-file"], &["-c"]),
    ("dash", &["-o", "+o"], &["-c"]),
    ("sh", &["-o", "+o"], &["-c"]),
    ("zsh", &["-o"], &["-c"]),
    ("ruby", &["-I", "-r", "-C", "-E"], &["-e"]),
    ("perl", &["-I"], &["-e", "-E"]),
    ("php", &["-d", "-c"], &["-r"]),
];

/// What will run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Measured {
    /// The program: of a script, its interpreter. Absolute.
    pub program: PathBuf,
    /// The script. Absolute.
    pub script: Option<PathBuf>,
}

/// What the command line will run, found as `execvp` finds it; `None` when it cannot be told.
pub(super) fn measured(command: &[OsString], path: &OsStr, cwd: &Path) -> Option<Measured> {
    let (name, arguments) = command.split_first()?;
    let first = find(name, path, cwd)?;
    let mut program = first.clone();
    let mut script = None;
    for _ in 0..MAX_INTERPRETERS {
        let Some(line) = shebang(&program) else { break };
        script.get_or_insert_with(|| program.clone());
        program = interpreter(&line, path, cwd)?;
    }
    let script = script.or_else(|| script_of(&program, arguments).map(|script| cwd.join(script)));
    Some(Measured { program, script })
}

/// A program as `execvp` finds it.
fn find(name: &OsStr, path: &OsStr, cwd: &Path) -> Option<PathBuf> {
    if name.as_bytes().contains(&b'/') {
        return Some(cwd.join(name));
    }
    std::env::split_paths(path).map(|dir| cwd.join(dir).join(name)).find(|path| {
        std::fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    })
}

/// What follows `#!`.
fn shebang(program: &Path) -> Option<Vec<u8>> {
    let mut start = Vec::new();
    std::fs::File::open(program).ok()?.take(SHEBANG_BYTES).read_to_end(&mut start).ok()?;
    let line = start.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    Some(line.trim_ascii().to_vec())
}

/// The interpreter of a `#!` line, through `env` to what that runs.
fn interpreter(line: &[u8], path: &OsStr, cwd: &Path) -> Option<PathBuf> {
    let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let named = PathBuf::from(OsString::from_vec(words.next()?.to_vec()));
    if named.file_name()? != "env" {
        return Some(cwd.join(named));
    }
    let name = words.find(|word| !word.starts_with(b"-") && !word.contains(&b'='))?;
    find(OsStr::from_bytes(name), path, cwd)
}

/// The script argument of an interpreter.
fn script_of<'a>(program: &Path, arguments: &'a [OsString]) -> Option<&'a OsStr> {
    let name = program.file_name()?.to_str()?;
    // `python3`, `python3.11`, `nodejs`: what follows the name is a version, or `js`.
    let is_version = |rest: &str| rest == "js" || rest.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let fits = |known: &str| name.strip_prefix(known).is_some_and(is_version);
    let (_, with_value, without_script) = INTERPRETERS.iter().find(|(known, ..)| fits(known))?;
    let mut arguments = arguments.iter().map(OsString::as_os_str);
    while let Some(argument) = arguments.next() {
        let text = argument.to_string_lossy();
        if text == "--" {
            return arguments.next();
        }
        if text == "-" || without_script.iter().any(|option| is_option(&text, option)) {
            return None;
        }
        if with_value.contains(&&*text) {
            arguments.next()?;
        } else if !text.starts_with(['-', '+']) {
            return Some(argument);
        }
    }
    None
}

/// Whether an argument is this option, perhaps with its value in the same word, or among others: `-c`, `-Ic`.
fn is_option(argument: &str, option: &str) -> bool {
    if option.starts_with("--") {
        return argument.split('=').next() == Some(option);
    }
    argument == option
        || (!argument.starts_with("--") && argument.starts_with('-') && argument[1..].contains(&option[1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, content) in [
            ("bin/python3.11", ""),
            ("bin/node", ""),
            ("bin/sh", ""),
            ("bin/env", ""),
            ("bin/tool", "#!/bin/sh -e\n"),
            ("agent.py", "#!/usr/bin/env python3.11\n"),
            ("split.py", "#! /usr/bin/env -S A=b python3.11 -u\n"),
            ("wrapped", "#!bin/tool\n"),
        ] {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().expect("below")).expect("made");
            std::fs::write(&path, content).expect("written");
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("set");
        }
        dir
    }

    #[test]
    fn interpreter_and_script_are_found_however_the_script_is_started() {
        let host = host();
        let root = host.path();
        let path = OsString::from(root.join("bin"));
        let none = None::<&str>;
        let python = "bin/python3.11";
        for (line, program, script) in [
            ("python3.11 agent.py --flag", python, Some("agent.py")),
            ("python3.11 -u -X dev -W error agent.py", python, Some("agent.py")),
            ("python3.11 -- -odd.py", python, Some("-odd.py")),
            ("python3.11 -c code agent.py", python, none),
            ("python3.11 -Im package", python, none),
            ("python3.11 -", python, none),
            ("python3.11", python, none),
            ("./agent.py", python, Some("./agent.py")),
            ("./split.py", python, Some("./split.py")),
            ("node --require x.js main.js", "bin/node", Some("main.js")),
            ("node --eval=1 main.js", "bin/node", none),
            ("sh -ec true", "bin/sh", none),
            ("sh -e x.sh", "bin/sh", Some("x.sh")),
            ("tool x", "/bin/sh", Some("bin/tool")),
            ("bin/node", "bin/node", none),
        ] {
            let command: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            let found = measured(&command, &path, root).unwrap_or_else(|| panic!("{line}: nothing found"));
            let expected = Measured { program: root.join(program), script: script.map(|script| root.join(script)) };
            if program.starts_with('/') {
                // A real shell stands behind it, which may be a link or a script of its own.
                assert_eq!(found.script, expected.script, "{line}");
            } else {
                assert_eq!(found, expected, "{line}");
            }
        }
        assert_eq!(measured(&["absent".into()], &path, root), None);
    }
}
