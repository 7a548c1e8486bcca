//! What the types must forbid: every program in `tests/must_not_compile/` has exactly the errors that
//! its comments `//~ CODE` name, on those lines, so that a name that is gone is not taken for one of
//! them.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Lines and codes of errors.
type Errors = BTreeSet<(u64, String)>;

/// The library that this test was built with, among those of earlier builds.
fn library(folder: &Path) -> PathBuf {
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let libraries = files.filter(|path| {
        let name = path.file_name().unwrap().to_string_lossy();
        name.starts_with("liboptswap-") && name.ends_with(".rlib")
    });
    libraries.max_by_key(|path| path.metadata().unwrap().modified().unwrap()).unwrap()
}

/// The errors that the compiler finds in a program.
fn errors_in(program: &Path) -> Errors {
    let test = std::env::current_exe().unwrap();
    let folder = test.parent().unwrap();
    let out = tempfile::tempdir().unwrap();
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or("rustc".into()));
    rustc.args(["--edition", "2024", "--crate-type", "lib", "--emit", "metadata"]);
    rustc.args(["--error-format", "json", "--extern"]);
    rustc.arg(format!("optswap={}", library(folder).display())).arg("--out-dir").arg(out.path());
    rustc.arg("-L").arg(format!("dependency={}", folder.display())).arg(program);
    let output = rustc.output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    let mut errors = Errors::new();
    for line in text.lines() {
        let message: serde_json::Value = serde_json::from_str(line).unwrap();
        if message["level"] != "error" {
            continue;
        }
        // The last error counts the others.
        let spans = message["spans"].as_array().unwrap();
        if let Some(span) = spans.iter().find(|span| span["is_primary"] == true) {
            let code = message["code"]["code"].as_str().unwrap_or("no code").to_owned();
            errors.insert((span["line_start"].as_u64().unwrap(), code));
        } else {
            assert!(message["code"].is_null(), "{message:#}");
        }
    }
    assert_eq!(output.status.success(), errors.is_empty(), "{text}");
    errors
}

fn errors_named_in(program: &Path) -> Errors {
    let text = std::fs::read_to_string(program).unwrap();
    let lines = (1..).zip(text.lines());
    let named = lines.filter_map(|(number, line)| Some((number, line.split_once("//~ ")?.1)));
    named.map(|(number, code)| (number, code.to_owned())).collect()
}

#[test]
fn each_program_has_the_errors_that_it_names() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/must_not_compile");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let program = entry.unwrap().path();
        let named = errors_named_in(&program);
        assert!(!named.is_empty(), "{}", program.display());
        assert_eq!(errors_in(&program), named, "{}", program.display());
        count += 1;
    }
    assert!(count > 0);
}

#[test]
fn a_program_without_errors_compiles() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("program.rs");
    let text = "use optswap::{NoParameters, SubGroup};\n\
                type Any<'a> = SubGroup<'a, 'a, f32, NoParameters>;\n\
                pub fn index(it: &Any<'_>) -> u32 {\n    it.index()\n}\n";
    std::fs::write(&program, text).unwrap();
    assert_eq!(errors_in(&program), Errors::new());
}
