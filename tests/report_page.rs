//! The page of a report: everything on it, nothing from elsewhere; rendered by a browser.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

mod support;

use std::process::Command;

use support::{Drives, alone, one_at_a_time, optswap};

/// Results of benchmarks of this many parameters, and the page of all of them.
fn page(drives: &Drives, params: &[&str]) -> String {
    let config = drives.write("small.toml", "[swap]\nchunk_elements = 65536\n");
    let mut arguments = vec!["report".to_owned()];
    for (index, params) in params.iter().enumerate() {
        let json = drives.path().join(format!("result-{index}.json")).display().to_string();
        let list = drives.list(2);
        let bench = ["bench", "--steps", "4", "--warmup", "1", "--drives", &list, "--params"];
        let run = alone(
            &optswap(),
            &[&bench[..], &[params, "--config", &config, "--json", &json]].concat(),
        );
        assert_eq!(run.code, 0, "{}", run.stderr);
        arguments.push(json);
    }
    let page = drives.path().join("page.html").display().to_string();
    arguments.extend(["--output".to_owned(), page.clone()]);
    let run = alone(&optswap(), &arguments.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(run.code, 0, "{}", run.stderr);
    for words in ["step s ", "median", "rank 0 (", "page.html", "result-0.json"] {
        assert!(run.stdout.contains(words), "`{words}` is not in:\n{}", run.stdout);
    }
    page
}

#[test]
fn the_page_has_every_picture_and_needs_nothing_from_elsewhere() {
    let _turn = one_at_a_time();
    let drives = Drives::new(2);
    let page = page(&drives, &["512Ki", "1Mi"]);
    let html = std::fs::read_to_string(&page).unwrap();
    let titles = [
        "Bandwidth over ranks",
        "Step time over ranks",
        "Step time",
        "Where the time went",
        "Bandwidth of the drives",
        "what overlapped",
    ];
    for title in titles {
        assert!(html.contains(&format!("{title}</h3>")), "{title}");
    }
    // Two pictures of all results, four of each.
    let count = |what: &str| html.matches(what).count();
    assert_eq!((count("<figure"), count("<svg"), count("<table>")), (10, 10, 10));
    assert_eq!(count("role=\"img\" aria-label=\""), 10);
    for from_elsewhere in ["http://", "https://", "src=", "url(", "@import"] {
        // SVG has a name that looks like an address.
        let html = html.replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
        assert!(!html.contains(from_elsewhere), "{from_elsewhere}");
    }
}

mod needs_chromium {
    use super::*;

    /// The tree that a browser makes of the page, and what it complains about.
    fn browse(page: &str, more: &[&str]) -> (String, String) {
        let profile = tempfile::tempdir().unwrap();
        let mut command = Command::new("timeout");
        command.args(["-k", "5", "60", "chromium", "--headless", "--no-sandbox", "--disable-gpu"]);
        command.args(["--disable-quic", "--no-first-run", "--disable-background-networking"]);
        command.args(["--disable-component-update", "--disable-sync", "--enable-logging=stderr"]);
        command.arg(format!("--user-data-dir={}", profile.path().display())).args(more);
        let output = command.arg(format!("file://{page}")).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{output:?}");
        (text(&output.stdout), text(&output.stderr))
    }

    #[test]
    #[ignore = "needs Chromium: launch/test"]
    fn a_browser_shows_every_picture_and_complains_about_nothing() {
        let _turn = one_at_a_time();
        let drives = Drives::new(2);
        let page = page(&drives, &["512Ki", "1Mi"]);
        let (tree, complaints) = browse(&page, &["--dump-dom"]);
        let console: Vec<&str> = complaints.lines().filter(|it| it.contains("CONSOLE")).collect();
        assert!(console.is_empty(), "{console:?}");
        assert_eq!(tree.matches("<svg").count(), 10);
        assert!(tree.contains("var(--s0)"), "pictures have the page's colours");
        for colour_scheme in [1, 0] {
            let shot = drives.path().join("page.png");
            let shot_to = format!("--screenshot={}", shot.display());
            let scheme = format!("--blink-settings=preferredColorScheme={colour_scheme}");
            browse(&page, &["--window-size=1100,2000", &scheme, &shot_to]);
            let bytes = std::fs::read(&shot).unwrap();
            assert!(bytes.starts_with(b"\x89PNG") && bytes.len() > 20_000, "{} bytes", bytes.len());
        }
    }
}

#[test]
fn what_a_file_says_cannot_become_markup() {
    let _turn = one_at_a_time();
    let drives = Drives::new(2);
    page(&drives, &["64Ki"]);
    let json = drives.path().join("result-0.json");
    let mut result: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    result["rank_records"][0]["host"] = "<script>alert(1)</script>\"&".into();
    std::fs::write(&json, result.to_string()).unwrap();
    let out = drives.path().join("out.html").display().to_string();
    let json = json.display().to_string();
    assert_eq!(alone(&optswap(), &["report", &json, "-o", &out]).code, 0);
    let html = std::fs::read_to_string(&out).unwrap();
    assert!(!html.contains("<script>alert"), "markup from a file");

    // Columns that do not fit are refused, not believed.
    result["rank_records"][0]["series"]["own_ns"] = serde_json::json!([1]);
    std::fs::write(&json, result.to_string()).unwrap();
    alone(&optswap(), &["report", &json, "-o", &out]).expect(64, &["different lengths"]);
}
