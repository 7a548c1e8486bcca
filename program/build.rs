//! Tells the program which commit it was built from, where git can be asked: results name it.

use std::process::Command;

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}

fn main() {
    for path in ["build.rs", "Cargo.toml", "src", "../src", "../args/src"] {
        println!("cargo:rerun-if-changed={path}");
    }
    // Commits alone rebuild nothing: `-dirty` stays until sources change.
    let commit = git(&["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]);
    println!("cargo:rustc-env=OPTSWAP_COMMIT={}", commit.unwrap_or_else(|| "unknown".to_owned()));
}
