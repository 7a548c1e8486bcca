//! What the pictures show, and the tables behind them.

use super::charts::{Bar, COLOURS, Curve, bars, curves};
use crate::report::result_file::ResultFile;
use optswap::internals::telemetry::{RankRecord, rank_lines};
use optswap::internals::timers::{NO_CHUNK, Section, SpanKind, Timer};

/// A picture with what belongs to it.
pub(super) struct Figure {
    pub title: String,
    pub caption: String,
    /// Number of a colour, and what has it.
    pub legend: Vec<(usize, String)>,
    pub svg: String,
    pub header: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

/// Of one result.
pub(super) fn of(result: &ResultFile) -> Vec<Figure> {
    let mut figures = vec![step_times(result), sections(result)];
    figures.extend(bandwidth(result));
    figures.extend(overlap(result));
    figures
}

fn header(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn step_times(result: &ResultFile) -> Figure {
    let records = &result.rank_records;
    let first = records[0].series.step.first().copied().unwrap_or(1);
    let number = |index: usize| (first + index as u64) as f64;
    let points = |values: &[f64]| -> Vec<(f64, f64)> {
        values.iter().enumerate().map(|(index, s)| (number(index), *s)).collect()
    };
    let least = own_times(records);
    let slowest = Curve { colour: 0, points: points(&result.step_seconds), is_limit: false };
    let own = Curve { colour: 1, points: points(&least), is_limit: false };
    let rows = result.step_seconds.iter().enumerate().map(|(index, seconds)| {
        let own = least.get(index).map_or("-".to_owned(), |own| format!("{own:.4}"));
        vec![number(index).to_string(), format!("{seconds:.4}"), own]
    });
    Figure {
        title: "Step time".to_owned(),
        caption:
            "Every step of the slowest rank, and the largest part of a step that was a rank's own \
                and not waiting for others."
                .to_owned(),
        legend: vec![
            (0, "slowest rank".to_owned()),
            (1, "largest part of a rank's own".to_owned()),
        ],
        rows: rows.collect(),
        svg: curves("step", "seconds", &[slowest, own], false),
        header: header(&["step", "slowest rank s", "largest own part s"]),
    }
}

/// The largest own part of any rank, step by step.
fn own_times(records: &[RankRecord]) -> Vec<f64> {
    let steps = records.iter().map(|record| record.series.len()).min().unwrap_or(0);
    let mut largest_ns = vec![0; steps];
    for record in records {
        // A rank that has more steps than others has the earlier ones more.
        let own_ns = &record.series.own_ns;
        for (largest, own) in largest_ns.iter_mut().zip(&own_ns[own_ns.len() - steps..]) {
            *largest = (*largest).max(*own);
        }
    }
    largest_ns.into_iter().map(|ns| ns as f64 / 1e9).collect()
}

fn sections(result: &ResultFile) -> Figure {
    const REST: usize = Section::ALL.len();
    let records = &result.rank_records;
    let per_step = |record: &RankRecord, seconds: f64| seconds * 1e3 / record.steps.max(1) as f64;
    let (lines, left_out) =
        rank_lines(&records.iter().map(|it| it.seconds(Timer::StepOwn)).collect::<Vec<_>>());
    let (mut rectangles, mut rows) = (Vec::new(), Vec::new());
    for (row, index) in lines.iter().enumerate() {
        let record = &records[*index];
        let step = per_step(record, record.seconds(Timer::Step));
        let mut cells = vec![name_of(record), format!("{step:.2}")];
        let mut at = 0.0;
        let known = Section::ALL.map(|section| per_step(record, record.section_seconds(section)));
        let rest = (step - known.iter().sum::<f64>()).max(0.0);
        for (colour, length) in known.into_iter().chain([rest]).enumerate() {
            rectangles.push(Bar { row, from: at, to: at + length, colour });
            cells.push(format!("{length:.2}"));
            at += length;
        }
        rows.push(cells);
    }
    let mut names: Vec<String> = Section::ALL.map(|section| section.name().to_owned()).to_vec();
    names.push("rest".to_owned());
    let mut header = header(&["rank", "step ms"]);
    header.extend(names.iter().map(|name| format!("{name} ms")));
    let more = match left_out {
        0 => String::new(),
        count => format!(" The slowest and the fastest; {count} ranks in between are left out."),
    };
    Figure {
        title: "Where the time went".to_owned(),
        caption: format!("Milliseconds of a step, on average, by rank.{more}"),
        legend: (0..=REST).zip(names).collect(),
        svg: bars(
            "milliseconds per step",
            &lines.iter().map(|index| name_of(&records[*index])).collect::<Vec<_>>(),
            &rectangles,
        ),
        header,
        rows,
    }
}

fn name_of(record: &RankRecord) -> String {
    format!("rank {} ({})", record.rank, record.host)
}

/// What a drive of a node moved per second, step by step, all ranks together.
struct Rates {
    name: String,
    rates: Vec<f64>,
    limit: Option<f64>,
}

fn rates(records: &[RankRecord]) -> Vec<Rates> {
    let steps = records.iter().map(|record| record.series.len()).min().unwrap_or(0);
    let mut all: Vec<Rates> = Vec::new();
    for record in records {
        for (drive, of) in record.drives.iter().zip(&record.series.drives) {
            let name = format!("{} ({})", drive.root().display(), record.host);
            let known = all.iter().position(|it| it.name == name);
            let at = known.unwrap_or_else(|| {
                let limit = drive.limit.map(|limit| limit.mixed_bytes_per_s / 1e9);
                all.push(Rates { name, rates: vec![0.0; steps], limit });
                all.len() - 1
            });
            let skipped = record.series.len() - steps;
            for (index, rate) in all[at].rates.iter_mut().enumerate() {
                let index = index + skipped;
                // What is written behind a step may be in flight after it.
                let seconds = record.series.step_ns[index].max(of.busy_ns[index]) as f64 / 1e9;
                let bytes = (of.read_bytes[index] + of.written_bytes[index]) as f64;
                *rate += if seconds > 0.0 { bytes / 1e9 / seconds } else { 0.0 };
            }
        }
    }
    all
}

fn bandwidth(result: &ResultFile) -> Option<Figure> {
    let mut all = rates(&result.rank_records);
    all.retain(|it| !it.rates.is_empty());
    if all.is_empty() {
        return None;
    }
    let count = all.len();
    let mean = |it: &Rates| it.rates.iter().sum::<f64>() / it.rates.len() as f64;
    all.sort_by(|a, b| mean(b).total_cmp(&mean(a)));
    all.truncate(COLOURS);
    let first = result.rank_records[0].series.step.first().copied().unwrap_or(1);
    let mut lines = Vec::new();
    for (colour, it) in all.iter().enumerate() {
        let x = |index: usize| (first + index as u64) as f64;
        let points = it.rates.iter().enumerate().map(|(index, rate)| (x(index), *rate));
        lines.push(Curve { colour, points: points.collect(), is_limit: false });
        if let Some(limit) = it.limit {
            let points = vec![(x(0), limit), (x(it.rates.len() - 1), limit)];
            lines.push(Curve { colour, points, is_limit: true });
        }
    }
    let has_limits = all.iter().any(|it| it.limit.is_some());
    let limits = if has_limits {
        " Dashed: what the drive can do both ways at once, as it was measured."
    } else {
        " No drive has a measured limit: optswap probe measures it."
    };
    let left_out = match count - all.len() {
        0 => String::new(),
        more => format!(" The fastest; {more} more drives are left out."),
    };
    let mut header = vec!["step".to_owned()];
    header.extend(all.iter().map(|it| format!("{} GB/s", it.name)));
    let mut rows = Vec::new();
    for index in 0..all[0].rates.len() {
        let mut cells = vec![(first + index as u64).to_string()];
        cells.extend(all.iter().map(|it| format!("{:.3}", it.rates[index])));
        rows.push(cells);
    }
    Some(Figure {
        title: "Bandwidth of the drives".to_owned(),
        caption: format!("GB/s read and written, per step.{limits}{left_out}"),
        legend: all.iter().enumerate().map(|(at, it)| (at, it.name.clone())).collect(),
        svg: curves("step", "GB/s", &lines, false),
        rows,
        header,
    })
}

/// Colours of the picture of a step.
const READ: usize = 0;
const WRITE: usize = 1;

fn overlap(result: &ResultFile) -> Option<Figure> {
    let drawn = result.rank_records.iter().filter(|record| !record.picture.is_empty());
    let (mut names, mut rectangles, mut rows) = (Vec::new(), Vec::new(), Vec::new());
    let mut step = 0;
    for record in drawn.take(4) {
        let picture = || record.picture.iter().filter(|span| !is_before_step(span.kind));
        let start = picture().map(|span| span.begin_ns).min().unwrap_or(0);
        let ms = |ns: u64| ns.saturating_sub(start) as f64 / 1e6;
        step = record.picture[0].step;
        let described = picture().filter_map(|span| describe(record, span.kind));
        let mut tracks: Vec<String> = described.map(|(track, ..)| track).collect();
        tracks.sort();
        tracks.dedup();
        for span in picture() {
            let Some((track, colour, what)) = describe(record, span.kind) else { continue };
            let at = tracks.iter().position(|known| *known == track).unwrap_or(0);
            let (from, to) = (ms(span.begin_ns), ms(span.end_ns));
            rectangles.push(Bar { row: names.len() + at, from, to, colour });
            let chunk =
                if span.chunk == NO_CHUNK { "-".to_owned() } else { span.chunk.to_string() };
            rows.push(vec![
                what,
                record.rank.to_string(),
                chunk,
                format!("{from:.3}"),
                format!("{to:.3}"),
                span.bytes.to_string(),
            ]);
        }
        names.extend(tracks.iter().map(|track| format!("rank {}: {track}", record.rank)));
    }
    let mut legend = vec![(READ, "reads".to_owned()), (WRITE, "writes".to_owned())];
    let work = [Section::Compute, Section::Gradient, Section::Checksum, Section::Collective];
    legend.extend(work.map(|section| (colour_of(section), section.name().to_owned())));
    (!rectangles.is_empty()).then(|| Figure {
        title: format!("Step {step}: what overlapped"),
        caption: "Operations on the drives, and what the step computed and waited for; the first \
                thousand spans of a few ranks, each from the beginning of its own step."
            .to_owned(),
        legend,
        svg: bars("milliseconds", &names, &rectangles),
        header: header(&["what", "rank", "chunk", "from ms", "to ms", "bytes"]),
        rows,
    })
}

/// The caller's own work between two steps may be longer than both, and nothing of it is known.
fn is_before_step(kind: SpanKind) -> bool {
    let before = [Timer::BetweenSteps, Timer::CollectivesBetween];
    before.iter().any(|timer| kind == SpanKind::Timer(*timer as u8))
}

fn colour_of(section: Section) -> usize {
    match section {
        Section::Read => READ,
        Section::Write => WRITE,
        Section::Compute => 2,
        Section::Gradient => 3,
        Section::Checksum => 4,
        Section::Commit => 5,
        Section::Collective => 6,
    }
}

/// Track, colour and name of a span; none for what is only around others.
fn describe(record: &RankRecord, kind: SpanKind) -> Option<(String, usize, String)> {
    let drive = |drive: u16| {
        let found = record.drives.get(usize::from(drive));
        found.map_or("a drive".to_owned(), |it| it.root().display().to_string())
    };
    match kind {
        SpanKind::Read(at) => Some((format!("reads {}", drive(at)), READ, "read".to_owned())),
        SpanKind::Write(at) => Some((format!("writes {}", drive(at)), WRITE, "write".to_owned())),
        SpanKind::Timer(timer) => {
            let timer = *Timer::ALL.get(usize::from(timer))?;
            let section = timer.section()?;
            let track = match section {
                Section::Read | Section::Write => "waiting for drives",
                Section::Collective => "collectives",
                _ => "computing",
            };
            Some((track.to_owned(), colour_of(section), timer.name().to_owned()))
        }
    }
}

/// Of several results: how the figures change with the number of ranks.
pub(super) fn scaling(results: &[ResultFile]) -> Vec<Figure> {
    let mut order: Vec<&ResultFile> = results.iter().collect();
    order.sort_by_key(|result| result.rank_records.len());
    let ranks = |result: &ResultFile| result.rank_records.len() as f64;
    let points = |value: fn(&ResultFile) -> f64, scale: f64| -> Vec<(f64, f64)> {
        order.iter().map(|result| (ranks(result), value(result) / scale)).collect()
    };
    let first = order[0];
    let ideal = |value: f64| -> Vec<(f64, f64)> {
        order.iter().map(|result| (ranks(result), value * ranks(result) / ranks(first))).collect()
    };
    let header =
        header(&["result", "ranks", "parameters", "step s", "GB/s", "Mparam/s", "% of ideal GB/s"]);
    let rows: Vec<Vec<String>> = order.iter().map(|result| scaling_row(result, first)).collect();
    let rate = points(ResultFile::bytes_per_s, 1e9);
    let rate_ideal = ideal(rate[0].1);
    let step = points(ResultFile::step_median_s, 1.0);
    let curve = |points| Curve { colour: 0, points, is_limit: false };
    let limit = |points| Curve { colour: 7, points, is_limit: true };
    vec![
        Figure {
            title: "Bandwidth over ranks".to_owned(),
            caption: "GB/s read and written by all ranks. Dashed: as much more as there are more \
                    ranks than in the smallest result."
                .to_owned(),
            legend: vec![(0, "measured".to_owned()), (7, "ideal".to_owned())],
            svg: curves("ranks", "GB/s", &[curve(rate), limit(rate_ideal)], true),
            header: header.clone(),
            rows: rows.clone(),
        },
        Figure {
            title: "Step time over ranks".to_owned(),
            caption: "The middle step of each result. Flat is ideal when each rank has the same \
                    number of parameters in all of them."
                .to_owned(),
            legend: vec![(0, "measured".to_owned())],
            svg: curves("ranks", "seconds", &[curve(step)], true),
            header,
            rows,
        },
    ]
}

/// One result's figures, its bandwidth against that of the smallest result.
fn scaling_row(result: &ResultFile, first: &ResultFile) -> Vec<String> {
    let [ranks, first_ranks] = [result, first].map(|it| it.rank_records.len() as f64);
    let ideal = first.bytes_per_s() * ranks / first_ranks;
    let efficiency = if ideal > 0.0 { result.bytes_per_s() / ideal * 100.0 } else { 0.0 };
    vec![
        result.name.clone(),
        result.rank_records.len().to_string(),
        result.params.to_string(),
        format!("{:.4}", result.step_median_s()),
        format!("{:.3}", result.bytes_per_s() / 1e9),
        format!("{:.1}", result.params_per_s() / 1e6),
        format!("{efficiency:.0}"),
    ]
}
