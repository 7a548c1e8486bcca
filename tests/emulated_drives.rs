//! `cluster/drives`: optswap works on what it makes, with sectors of either size and limits of any
//! speed, and nothing of it is left.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

mod support;

use std::process::Command;

use support::{Run, one_at_a_time, optswap};

/// A set of emulated drives, gone at the end.
struct Set {
    name: String,
}

impl Set {
    fn up(options: &[&str]) -> Self {
        let set = Self { name: format!("test-{}", std::process::id()) };
        set.drives("up", options).expect(0, &[]);
        set
    }

    fn drives(&self, command: &str, arguments: &[&str]) -> Run {
        let mut script = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/cluster/drives"));
        script.env("OPTSWAP_DRIVES_NAME", &self.name).arg(command).args(arguments);
        Run::of(&script.output().unwrap())
    }
}

impl Drop for Set {
    fn drop(&mut self) {
        self.drives("down", &[]);
    }
}

mod needs_root {
    use super::*;

    #[test]
    #[ignore = "needs root and loop devices: launch/test"]
    fn sectors_of_4096_bytes_and_unequal_speeds() {
        let _turn = one_at_a_time();
        let set = Set::up(&["--count", "2", "--size", "256MiB", "--sector", "4096"]);
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let paths = set.drives("list", &[]).stdout.trim().to_owned();
        let first = std::fs::metadata(paths.split(',').next().unwrap()).unwrap();
        let device = std::os::unix::fs::MetadataExt::dev(&first);
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let sector = format!("/sys/dev/block/{major}:{minor}/queue/logical_block_size");
        assert_eq!(std::fs::read_to_string(sector).unwrap().trim(), "4096");

        // Half of the bytes lie on a drive of 20 MB/s: 6 MiB in a step, each way.
        let program = optswap().display().to_string();
        let bench = ["bench", "--params", "1Mi", "--steps", "2", "--verify", "--drives", &paths];
        let limits = ["--mbps", "200,20", "--", &program];
        let run = set.drives("run", &[&limits[..], &bench, &["--limit-mbps", "20"]].concat());
        assert!(run.code == 0 && run.stdout.contains(", verified"), "{run:?}");

        // Files are not written whole where that takes too long; comparing takes what time is left.
        let file = |name: &str| folder.path().join(name).display().to_string();
        let (output, json) = (file("tuned.toml"), file("tuned.json"));
        let tune = ["tune", "--drives", &paths, "--seconds", "8", "--output", &output];
        let limits = ["--mbps", "40,20", "--", &program];
        let run = set.drives("run", &[&limits[..], &tune, &["--json", &json]].concat());
        run.expect(0, &[]);
        let told: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(json).unwrap()).unwrap();
        assert!(told["seconds"].as_f64().unwrap() < 30.0, "{told:#}");
        assert!(told["trials"].as_array().is_some_and(|trials| !trials.is_empty()), "{told:#}");

        set.drives("run", &["--mbps", "fast", "--", "true"]).expect(64, &["fast is no speed"]);
        set.drives("down", &[]).expect(0, &[]);
        assert!(!std::path::Path::new(paths.split(',').next().unwrap()).exists());
        set.drives("list", &[]).expect(69, &["there are no drives"]);
    }
}
