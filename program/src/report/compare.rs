//! Results of several benchmarks side by side: weak and strong scaling, or ratios.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::bench::{BENCH_SCHEMA, BENCH_SCHEMA_OLDEST, Flag};
use super::flat_keys::{flat_keys, flat_keys_below};
use optswap::internals::error::{Error, Result};
use optswap::internals::telemetry::{TextTable, median};
use optswap::internals::units::counted;

/// What a comparison needs of a result file.
#[derive(Clone, Debug, Deserialize)]
struct Bench {
    label: Option<String>,
    ranks: u64,
    nodes: Vec<Value>,
    params: u64,
    verified: bool,
    step_seconds: Vec<f64>,
    bytes_read_per_param: f64,
    bytes_written_per_param: f64,
    limit_percent: Option<f64>,
    flags: Vec<Flag>,
    options: Value,
    config: Value,
    optswap: String,
    commit: String,
}

/// What kind of comparison it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scaling {
    /// More ranks, as many parameters for each.
    Weak,
    /// More ranks, as many parameters in all.
    Strong,
    /// As many ranks and parameters, other settings.
    Settings,
}

/// One result against the first.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The file, or the label that the user gave.
    pub name: String,
    /// Ranks.
    pub ranks: u64,
    /// Nodes.
    pub nodes: u64,
    /// Parameters of all ranks.
    pub params: u64,
    /// Seconds per step: the median of the repetitions.
    pub step_seconds: f64,
    /// The least and the most.
    pub step_seconds_range: [f64; 2],
    /// Gigabytes (1e9) read and written per second.
    pub gb_per_s: f64,
    /// How many times as fast: parameters per second over the first's.
    pub speed_up: f64,
    /// The least and the most that the repetitions allow.
    pub speed_up_range: [f64; 2],
    /// The speed-up over that of the ranks; for settings, the speed-up itself.
    pub efficiency: f64,
    /// How much of the drives' limit was reached.
    pub limit_percent: Option<f64>,
}

/// All results.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Version of this layout.
    pub schema: u32,
    /// What was compared.
    pub scaling: Scaling,
    /// By ranks; the first is what the others are held against.
    pub rows: Vec<Row>,
    /// Settings that differ: key, and the value of each row.
    pub differences: BTreeMap<String, Vec<Value>>,
    /// What a reader should know.
    pub remarks: Vec<String>,
}

/// Compares result files: name and content of each.
///
/// # Errors
/// Usage, if one is no result or cannot be compared with the first; it is named.
pub fn compare(files: &[(String, String)]) -> Result<Comparison> {
    let mut all: Vec<(String, Bench)> = files.iter().map(read).collect::<Result<_>>()?;
    if all.len() < 2 {
        return Err(Error::usage("a comparison needs at least two results"));
    }
    all.iter().skip(1).try_for_each(|other| refuse_unlike(&all[0], other))?;
    let scaling = scaling(&all)?;
    if scaling != Scaling::Settings {
        all.sort_by_key(|(_, bench)| bench.ranks);
    }
    let first = all[0].1.clone();
    let rows = all.iter().map(|(name, bench)| row(name, bench, &first, scaling)).collect();
    let remarks = all.iter().filter(|(_, bench)| bench.flags.contains(&Flag::Short));
    let remarks = remarks.map(|(name, _)| format!("{name}: repetitions of less than a second"));
    Ok(Comparison {
        schema: 1,
        scaling,
        rows,
        remarks: remarks.collect(),
        differences: differences(&all),
    })
}

fn read((file, text): &(String, String)) -> Result<(String, Bench)> {
    let wrong = |why: String| {
        Error::usage("this is no result of optswap bench that can be compared")
            .with("file", file)
            .because(why)
    };
    let value: Value = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
    match value.get("schema").and_then(Value::as_u64) {
        Some(known)
            if (u64::from(BENCH_SCHEMA_OLDEST)..=u64::from(BENCH_SCHEMA)).contains(&known) => {}
        Some(other) => {
            let versions = format!("{BENCH_SCHEMA_OLDEST} to {BENCH_SCHEMA}");
            return Err(wrong(format!("its layout is version {other}, not {versions}"))
                .hint("run the benchmark again with this version"));
        }
        None => return Err(wrong("it has no `schema`".to_owned())),
    }
    let bench: Bench = serde_json::from_value(value).map_err(|error| wrong(error.to_string()))?;
    if bench.step_seconds.is_empty() || bench.ranks == 0 || bench.params == 0 {
        return Err(wrong("it has no repetitions".to_owned()));
    }
    let name = bench.label.clone().unwrap_or_else(|| file.clone());
    Ok((name, bench))
}

/// Refuses two results of which one says nothing about the other.
fn refuse_unlike((first, a): &(String, Bench), (second, b): &(String, Bench)) -> Result<()> {
    let is_buffered = |bench: &Bench| bench.flags.contains(&Flag::Buffered);
    for (differs, what) in [
        (is_buffered(a) != is_buffered(b), "one was answered by the page cache, the other not"),
        (a.verified != b.verified, "one was verified after every step, the other not"),
        (
            a.options.get("gradients") != b.options.get("gradients"),
            "their gradients have other number formats",
        ),
        (kind_of_optimizer(a) != kind_of_optimizer(b), "their optimizers are not the same"),
    ] {
        if differs {
            let why = format!("{first} and {second} cannot be compared: {what}");
            return Err(Error::usage(why));
        }
    }
    Ok(())
}

fn kind_of_optimizer(bench: &Bench) -> Option<&Value> {
    bench.config.get("optimizer")?.get("kind")
}

fn scaling(all: &[(String, Bench)]) -> Result<Scaling> {
    let same = |value: fn(&Bench) -> f64| {
        let first = value(&all[0].1);
        all.iter().all(|(_, bench)| (value(bench) / first - 1.0).abs() < 0.01)
    };
    let ranks = same(|bench| bench.ranks as f64);
    let params = same(|bench| bench.params as f64);
    let params_per_rank = same(|bench| bench.params as f64 / bench.ranks as f64);
    match (ranks, params, params_per_rank) {
        (true, true, _) => Ok(Scaling::Settings),
        (false, _, true) => Ok(Scaling::Weak),
        (false, true, _) => Ok(Scaling::Strong),
        _ => {
            let mut each = Vec::new();
            for (name, bench) in all {
                let (ranks, params) = (counted(bench.ranks, "rank"), bench.params);
                each.push(format!("{name}: {ranks}, {params} parameters"));
            }
            Err(Error::usage("these results are neither weak nor strong scaling")
                .because(each.join("; "))
                .hint(
                    "compare runs with as many parameters for each rank, with as many in all, or \
                     with as many of both",
                ))
        }
    }
}

fn row(name: &str, bench: &Bench, first: &Bench, scaling: Scaling) -> Row {
    let range = |bench: &Bench| {
        let seconds = bench.step_seconds.iter().copied();
        let max = seconds.clone().fold(0.0, f64::max);
        [seconds.fold(f64::INFINITY, f64::min), max]
    };
    let seconds = median(&bench.step_seconds);
    let ([min, max], [first_min, first_max]) = (range(bench), range(first));
    let work = bench.params as f64 / first.params as f64;
    let speed_up = work * median(&first.step_seconds) / seconds;
    let bytes = bench.bytes_read_per_param + bench.bytes_written_per_param;
    let ideal = match scaling {
        Scaling::Settings => 1.0,
        _ => bench.ranks as f64 / first.ranks as f64,
    };
    Row {
        name: name.to_owned(),
        ranks: bench.ranks,
        nodes: bench.nodes.len() as u64,
        params: bench.params,
        step_seconds: seconds,
        step_seconds_range: [min, max],
        gb_per_s: bytes * bench.params as f64 / seconds / 1e9,
        speed_up,
        speed_up_range: [work * first_min / max, work * first_max / min],
        efficiency: speed_up / ideal,
        limit_percent: bench.limit_percent,
    }
}

/// Keys of the configuration, options and versions that are not the same everywhere.
fn differences(all: &[(String, Bench)]) -> BTreeMap<String, Vec<Value>> {
    let flat = |bench: &Bench| {
        let mut keys = flat_keys(&bench.config);
        keys.extend(flat_keys_below("bench", &bench.options));
        keys.insert("optswap".to_owned(), Value::from(bench.optswap.clone()));
        keys.insert("commit".to_owned(), Value::from(bench.commit.clone()));
        let of_node = |node: &Value, key: &str| node.get(key).cloned().unwrap_or_default();
        let kernels = bench.nodes.first().map(|node| of_node(node, "kernel"));
        keys.insert("kernel".to_owned(), kernels.unwrap_or_default());
        keys
    };
    let flat: Vec<BTreeMap<String, Value>> = all.iter().map(|(_, bench)| flat(bench)).collect();
    let mut differences = BTreeMap::new();
    for key in flat.iter().flat_map(BTreeMap::keys) {
        let values: Vec<Value> =
            flat.iter().map(|keys| keys.get(key).cloned().unwrap_or_default()).collect();
        if values.iter().any(|value| *value != values[0]) {
            differences.insert(key.clone(), values);
        }
    }
    // Ranks and parameters are in the table; the seed and the job's name decide no time.
    for key in ["bench.params", "bench.seed", "job"] {
        differences.remove(key);
    }
    differences
}

/// The comparison for people.
pub fn compare_table(comparison: &Comparison) -> String {
    let title = match comparison.scaling {
        Scaling::Weak => "weak scaling: as many parameters for each rank",
        Scaling::Strong => "strong scaling: as many parameters in all",
        Scaling::Settings => "as many ranks and parameters, other settings",
    };
    let mut table = TextTable::of_numbers([
        "run",
        "nodes",
        "ranks",
        "parameters",
        "step s",
        "min",
        "max",
        "GB/s",
        "speed-up",
        "from",
        "to",
        "efficiency",
        "% of limit",
    ]);
    for row in &comparison.rows {
        let limit = row.limit_percent.map(|percent| format!("{percent:.1}"));
        table.add_row([
            row.name.clone(),
            row.nodes.to_string(),
            row.ranks.to_string(),
            row.params.to_string(),
            format!("{:.4}", row.step_seconds),
            format!("{:.4}", row.step_seconds_range[0]),
            format!("{:.4}", row.step_seconds_range[1]),
            format!("{:.3}", row.gb_per_s),
            format!("{:.3}", row.speed_up),
            format!("{:.3}", row.speed_up_range[0]),
            format!("{:.3}", row.speed_up_range[1]),
            format!("{:.1} %", row.efficiency * 100.0),
            limit.unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    let mut lines = vec![title.to_owned(), table.to_string()];
    for (key, values) in &comparison.differences {
        let values: Vec<String> = values.iter().map(Value::to_string).collect();
        lines.push(format!("differs: {key}: {}", values.join(", ")));
    }
    lines.extend(comparison.remarks.iter().cloned());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A result with these ranks, parameters and times, and one more key.
    fn file(
        name: &str,
        ranks: u64,
        params: u64,
        seconds: &[f64],
        more: &Value,
    ) -> (String, String) {
        let mut value = json!({
            "schema": 2, "ranks": ranks, "nodes": [{"host": "a", "kernel": "6"}], "params": params,
            "verified": false, "step_seconds": seconds, "bytes_read_per_param": 12.0,
            "bytes_written_per_param": 12.0, "limit_percent": null, "flags": [],
            "options": {"gradients": "bf16", "seed": ranks}, "label": null,
            "config": {"io": {"depth": 64}, "optimizer": {"kind": "adamw"}}, "optswap": "0",
            "commit": "c"
        });
        let more = more.as_object().unwrap().clone();
        value.as_object_mut().unwrap().extend(more);
        (name.to_owned(), value.to_string())
    }

    #[test]
    fn scaling_is_recognised() {
        let none = json!({});
        let one = file("one", 1, 1000, &[2.0, 2.2, 1.8], &json!({"schema": 3}));
        let weak = file("weak", 4, 4000, &[2.5, 2.5, 2.5], &none);
        let found = compare(&[weak, one.clone()]).unwrap();
        assert_eq!((found.scaling, found.rows[0].name.as_str()), (Scaling::Weak, "one"));
        let row = &found.rows[1];
        assert!((row.speed_up - 3.2).abs() < 1e-9 && (row.efficiency - 0.8).abs() < 1e-9);
        assert!((row.speed_up_range[0] - 4.0 * 1.8 / 2.5).abs() < 1e-9);
        let strong = file("strong", 2, 1000, &[1.0], &none);
        let found = compare(&[one.clone(), strong]).unwrap();
        assert_eq!((found.scaling, found.rows[1].efficiency), (Scaling::Strong, 1.0));
        let deep = json!({"config": {"io": {"depth": 8}, "optimizer": {"kind": "adamw"}}});
        let found = compare(&[one, file("deep", 1, 1000, &[1.0], &deep)]).unwrap();
        assert_eq!(found.scaling, Scaling::Settings);
        assert_eq!(found.differences["io.depth"], [json!(64), json!(8)]);
        assert_eq!(found.differences.len(), 1, "{:?}", found.differences);
        assert!(compare_table(&found).contains("differs: io.depth: 64, 8"));
    }

    #[test]
    fn what_cannot_be_compared_is_named() {
        let none = json!({});
        let one = file("one", 1, 1000, &[2.0], &none);
        for (other, words) in [
            (file("x", 2, 3000, &[1.0], &none), "x: 2 ranks, 3000 parameters"),
            (file("x", 1, 1000, &[1.0], &json!({"flags": ["buffered"]})), "page cache"),
            (file("x", 1, 1000, &[1.0], &json!({"verified": true})), "one and x"),
            (file("x", 1, 1000, &[1.0], &json!({"schema": 1})), "version 1, not 2 to 4"),
            (file("x", 1, 1000, &[1.0], &json!({"schema": 5})), "version 5, not 2 to 4"),
            (file("x", 1, 1000, &[1.0], &json!({"options": {"gradients": "f32"}})), "formats"),
            (file("x", 1, 1000, &[], &none), "no repetitions"),
            (("x".to_owned(), "{}".to_owned()), "file x"),
            (("x".to_owned(), "words".to_owned()), "expected value"),
        ] {
            let error = compare(&[one.clone(), other]).unwrap_err();
            assert_eq!(error.exit_code(), 64);
            assert!(error.to_string().contains(words), "{words}: {error}");
        }
        assert!(compare(&[one]).unwrap_err().to_string().contains("at least two"));
    }
}
