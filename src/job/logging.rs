//! Log lines on the terminal: tagged with host and rank, rank 0 alone unless asked for more.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::coord::STALL_TARGET;
use crate::storage::DRIVES_TARGET;
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

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "all" {
            return Ok(Self::All);
        }
        let range = |part: &str| -> Option<RangeInclusive<u32>> {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(first.parse().ok()?..=last.parse().ok()?)
        };
        let ranges: Option<Vec<_>> = text.split(',').map(range).collect();
        ranges.map(Self::Some).ok_or_else(|| format!("`{text}` is neither `all` nor like 0,3-5"))
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
        let level = event.metadata().level().as_str().to_lowercase();
        write!(writer, "{} {level}: ", self.tag)?;
        context.field_format().format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

/// Starts logging to stderr. `RUST_LOG` sets the level (default `info`); a rank that is not to log
/// says nothing but which rank it waits for (of the others, only one says so, and if rank 0 is the
/// late one, it cannot be rank 0) and which drive of its node has changed, if it is the first there. A subscriber that the program has set up itself stays.
pub(super) fn start(tag: &str, is_logging: bool) {
    let filter = match is_logging {
        true => EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info")),
        false => EnvFilter::new(format!("{STALL_TARGET}=warn,{DRIVES_TARGET}=warn")),
    };
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // They would be told to stderr, which is what failed, and panic.
        .log_internal_errors(false)
        .event_format(Tagged { tag: tag.to_owned() });
    let _ = subscriber.try_init();
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
