//! Log lines: on the terminal, tagged with host and rank, by default of rank 0 alone; and if
//! wanted, in a file of each rank, as JSON.

use std::fmt;
use std::io::IsTerminal;
use std::ops::RangeInclusive;
use std::path::Path;
use std::str::FromStr;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use super::complain;
use crate::config::parse_ranges;
use crate::coord::STALL_TARGET;
use crate::error::{Error, ErrorKind, Result};
use crate::storage::DRIVES_TARGET;
use crate::telemetry::{LOSSES_TARGET, LineFile, is_passing, utc_now};
use crate::units::Rank;

/// Which ranks log to the terminal: `all`, or numbers and ranges such as `0,3-5`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogRanks {
    /// Every rank.
    All,
    /// These ranks.
    Some(Vec<RangeInclusive<u32>>),
}

impl Default for LogRanks {
    fn default() -> Self {
        Self::Some(vec![0..=0])
    }
}

impl LogRanks {
    /// Whether this rank logs.
    pub fn includes(&self, rank: Rank) -> bool {
        match self {
            Self::All => true,
            Self::Some(ranges) => ranges.iter().any(|range| range.contains(&rank.0)),
        }
    }
}

impl FromStr for LogRanks {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        if text == "all" {
            return Ok(Self::All);
        }
        parse_ranges(text)
            .map(Self::Some)
            .ok_or_else(|| format!("`{text}` is neither `all` nor like 0,3-5"))
    }
}

/// The colour of a level's name on a terminal; most lines have none.
fn colour(level: &Level) -> Option<&'static str> {
    match *level {
        Level::ERROR => Some("31"),
        Level::WARN => Some("33"),
        _ => None,
    }
}

/// A rank's file of log lines.
pub(super) struct LogFile {
    file: LineFile,
    rank: u32,
}

/// Writes events as objects of JSON, one a line: ts, level, host, rank, target, message, and the
/// event's other fields.
struct JsonLines {
    file: LineFile,
    rank: u32,
    host: String,
    /// What a warning on the terminal begins with; `None` where this rank gives none.
    tag: Option<String>,
}

impl<S: Subscriber> Layer<S> for JsonLines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let mut line = serde_json::json!({
            "ts": utc_now(),
            "level": event.metadata().level().as_str().to_lowercase(),
            "host": self.host,
            "rank": self.rank,
            "target": event.metadata().target(),
            "message": fields.message,
        });
        for (name, value) in fields.others {
            line[name] = value;
        }
        // A warning would come back to this layer.
        if let (Err(error), Some(tag)) = (self.file.add(&format!("{line}\n")), &self.tag) {
            let path = self.file.path().display();
            complain(format_args!(
                "{tag} warn: the log cannot be written, the job goes on without: {path}: {error}"
            ));
        }
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    others: Vec<(&'static str, serde_json::Value)>,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            name => self.others.push((name, format!("{value:?}").into())),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.others.push((field.name(), value.into()));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.others.push((field.name(), value.into()));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.others.push((field.name(), value.into()));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.others.push((field.name(), value.into()));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.others.push((field.name(), value.into()));
    }
}

/// `[host rank/size] LEVEL message fields`
struct Tagged {
    tag: String,
}

impl<S, N> FormatEvent<S, N> for Tagged
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let level = event.metadata().level();
        let name = level.as_str().to_lowercase();
        match (writer.has_ansi_escapes(), colour(level)) {
            (true, Some(colour)) => write!(writer, "{} \x1b[{colour}m{name}\x1b[0m: ", self.tag)?,
            _ => write!(writer, "{} {name}: ", self.tag)?,
        }
        context.field_format().format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

/// Opens this rank's file of log lines in a directory, which is created if it is missing. Lines of
/// an earlier start of the job stay. `Err` within `Ok` says that the file system is full or broken:
/// the job goes on without.
///
/// # Errors
/// Cannot create, where the name is at fault.
pub(super) fn open_file(dir: &Path, rank: Rank) -> Result<std::io::Result<LogFile>> {
    let path = dir.join(format!("log-rank{:05}.jsonl", rank.0));
    match std::fs::create_dir_all(dir).and_then(|()| LineFile::open(path.clone())) {
        Ok(file) => Ok(Ok(LogFile { file, rank: rank.0 })),
        Err(error) if is_passing(&error) => Ok(Err(error)),
        Err(error) => Err(Error::new(ErrorKind::CannotCreate, "the log cannot be written")
            .with("file", path.display())
            .because(error)
            .hint("name another directory with --log-dir")),
    }
}

/// Starts logging to stderr, and to a file if there is one. `RUST_LOG` sets the level (default
/// `info`).
///
/// On stderr, a rank with `is_logging` false writes only which rank it waits for, since rank 0 may
/// be the one that is late, which drive of its node has changed, which the node's first rank
/// reports, and, if it is `first_of_node`, which files beside training cannot be written: on a
/// large job one rank of each node is enough. Colours appear only on a terminal, and not if
/// `NO_COLOR` is set. A subscriber that the program has set up itself stays.
pub(super) fn start(tag: &str, is_logging: bool, first_of_node: bool, file: Option<LogFile>) {
    let wanted = || EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let filter = if is_logging {
        wanted()
    } else {
        let losses = if first_of_node { "warn" } else { "off" };
        EnvFilter::new(format!("{STALL_TARGET}=warn,{DRIVES_TARGET}=warn,{LOSSES_TARGET}={losses}"))
    };
    let no_color = std::env::var("NO_COLOR").is_ok_and(|value| !value.is_empty());
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal() && !no_color)
        .event_format(Tagged { tag: tag.to_owned() })
        .with_filter(filter);
    let file = file.map(|file| {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let tag = (is_logging || first_of_node).then(|| tag.to_owned());
        JsonLines { file: file.file, rank: file.rank, host, tag }.with_filter(wanted())
    });
    let _ = tracing_subscriber::registry().with(lines).with(file).try_init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_named_one_by_one_or_all() {
        let includes = |text: &str, rank| text.parse::<LogRanks>().unwrap().includes(Rank(rank));
        assert!(includes("all", 99));
        assert!(includes("0,3-5", 4) && !includes("0,3-5", 2));
        assert!("0,x".parse::<LogRanks>().is_err());
        assert!(LogRanks::default().includes(Rank(0)) && !LogRanks::default().includes(Rank(1)));
    }
}
