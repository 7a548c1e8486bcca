//! `optswap top`: a job as it runs, from its metrics files; on any machine that sees them.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Style, Stylize};
use ratatui::text::Line;
use ratatui::widgets::{Block, Cell, Paragraph, Row, Table};
use ratatui::{Frame, Terminal};

use crate::report::{DriveView, JobView, RankView, sparkline};
use optswap::internals::error::{Error, ErrorKind, Result};
use optswap::internals::telemetry::median;
use optswap_args::say;

/// A rank that has written nothing for so long, while it is watched, and has not ended, is shown as
/// silent.
const SILENT: Duration = Duration::from_secs(10);
/// Lines of the head, and of a table around its rows.
const HEAD_LINES: u16 = 4;
const TABLE_LINES: u16 = 3;

#[derive(Debug, Args)]
pub(super) struct TopArgs {
    /// What the job was given as --report-dir.
    dir: PathBuf,

    /// Print one picture as text, and end.
    #[arg(long)]
    once: bool,

    /// Seconds between two looks at the files.
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    every: f64,
}

pub(super) fn run(args: &TopArgs) -> Result<()> {
    if !(0.1..=3600.0).contains(&args.every) {
        return Err(Error::usage("--every must be from 0.1 to 3600"));
    }
    let mut job = JobView::open(&args.dir)?;
    if args.once {
        return say(once(&job)?.trim_end());
    }
    if !std::io::stdout().is_terminal() {
        return Err(Error::usage("top needs a terminal").hint("print one picture with --once"));
    }
    let mut terminal = ratatui::init();
    let watched = watch(&mut terminal, &mut job, Duration::from_secs_f64(args.every));
    ratatui::restore();
    watched
}

fn refused(error: std::io::Error) -> Error {
    Error::new(ErrorKind::Io, "the terminal cannot be used").because(error)
}

fn watch(
    terminal: &mut ratatui::DefaultTerminal,
    job: &mut JobView,
    every: Duration,
) -> Result<()> {
    let mut first = 0usize;
    loop {
        terminal.draw(|frame| draw(frame, job, first)).map_err(refused)?;
        if event::poll(every).map_err(refused)?
            && let Event::Key(key) = event::read().map_err(refused)?
            && key.kind == KeyEventKind::Press
        {
            match key.code {
                KeyCode::Char('q') | KeyCode::Esc => return Ok(()),
                KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => {
                    return Ok(());
                }
                KeyCode::Down | KeyCode::Char('j') => first += 1,
                KeyCode::Up | KeyCode::Char('k') => first = first.saturating_sub(1),
                KeyCode::PageDown => first += 20,
                KeyCode::PageUp => first = first.saturating_sub(20),
                _ => {}
            }
            first = first.min(job.ranks.len().saturating_sub(1));
        }
        job.refresh()?;
    }
}

/// One picture that has room for everything, as text.
fn once(job: &JobView) -> Result<String> {
    let lines = job.ranks.len() as u16 + job.drives().len().min(1000) as u16;
    let height = HEAD_LINES + 2 * TABLE_LINES + lines;
    let mut terminal = Terminal::new(TestBackend::new(110, height))
        .map_err(|error| Error::internal("the picture cannot be drawn").because(error))?;
    terminal
        .draw(|frame| draw(frame, job, 0))
        .map_err(|error| Error::internal("the picture cannot be drawn").because(error))?;
    let buffer = terminal.backend().buffer();
    let mut text = String::new();
    for row in buffer.content().chunks(usize::from(buffer.area().width)) {
        let line: String = row.iter().map(ratatui::buffer::Cell::symbol).collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    Ok(text)
}

fn draw(frame: &mut Frame<'_>, job: &JobView, first: usize) {
    let drives = job.drives();
    let area = frame.area();
    let wanted = drives.len().min(1000) as u16 + TABLE_LINES;
    let for_drives = wanted.min((area.height.saturating_sub(HEAD_LINES)) / 2);
    let parts = Layout::vertical([
        Constraint::Length(HEAD_LINES),
        Constraint::Min(TABLE_LINES),
        Constraint::Length(for_drives),
    ]);
    let [head, ranks, below] = parts.areas(area);
    draw_head(frame, head, job);
    draw_ranks(frame, ranks, job, first);
    draw_drives(frame, below, &drives);
}

fn draw_head(frame: &mut Frame<'_>, area: Rect, job: &JobView) {
    let (name, ranks) = job.name();
    let steps: Vec<u64> = job.ranks.values().filter_map(|view| Some(view.last()?.step)).collect();
    let silence = job.ranks.values().map(RankView::silence).min().unwrap_or_default();
    let ended = job.ranks.values().filter(|view| view.has_ended).count();
    let state = match ended {
        0 if silence > SILENT => format!("silent for {} s", silence.as_secs()),
        0 => "has not ended".to_owned(),
        all if all == job.ranks.len() => "ended".to_owned(),
        some => format!("{some} ranks have ended"),
    };
    let at = match (steps.iter().min(), steps.iter().max()) {
        (Some(min), Some(max)) if min == max => format!("step {max}"),
        (Some(min), Some(max)) => format!("steps {min} to {max}"),
        _ => "no step yet".to_owned(),
    };
    let seconds = job.step_seconds();
    let last = seconds.last().copied().unwrap_or(0.0);
    let drives = job.drives();
    let read: f64 = drives.iter().map(|drive| drive.read_bytes_per_s).sum();
    let written: f64 = drives.iter().map(|drive| drive.written_bytes_per_s).sum();
    let width = usize::from(area.width).saturating_sub(10).max(10);
    let lines = vec![
        Line::from(format!("job {name}: {at}, {} of {ranks} ranks seen, {state}", job.ranks.len()))
            .bold(),
        Line::from(format!(
            "step {last:.4} s, median {:.4} s; reads {:.3} GB/s, writes {:.3} GB/s",
            median(&seconds),
            read / 1e9,
            written / 1e9
        )),
        Line::from(format!("step s    {}", sparkline(&seconds, width))),
        Line::from("q ends, up and down move among the ranks").dim(),
    ];
    frame.render_widget(Paragraph::new(lines), area);
}

/// The ranks that are in the earliest step come first, and of these the ones whose own part is the
/// longest.
fn draw_ranks(frame: &mut Frame<'_>, area: Rect, job: &JobView, first: usize) {
    let mut ranks: Vec<(&u32, &RankView)> = job.ranks.iter().collect();
    let own = |view: &RankView| view.last().map_or(0.0, |it| it.own_s + it.between_s);
    ranks.sort_by(|(_, a), (_, b)| {
        let step = |view: &RankView| view.last().map_or(0, |it| it.step);
        step(a).cmp(&step(b)).then(own(b).total_cmp(&own(a)))
    });
    let rows = ranks.iter().skip(first).map(|(rank, view)| rank_row(**rank, view));
    let widths = [
        Constraint::Length(6),
        Constraint::Min(10),
        Constraint::Length(9),
        Constraint::Length(9),
        Constraint::Length(9),
        Constraint::Length(9),
        Constraint::Length(8),
        Constraint::Length(9),
        Constraint::Length(9),
        Constraint::Length(14),
    ];
    let names = [
        "rank", "host", "step", "step s", "own s", "before s", "waits %", "GB/s in", "GB/s out",
        "state",
    ];
    let title = match first {
        0 => format!("ranks, the latest first ({})", ranks.len()),
        _ => format!("ranks, the latest first ({} of {})", ranks.len() - first, ranks.len()),
    };
    let table = Table::new(rows, widths)
        .header(Row::new(names).style(Style::new().bold()))
        .block(Block::bordered().title(title));
    frame.render_widget(table, area);
}

fn rank_row(rank: u32, view: &RankView) -> Row<'static> {
    let host = view.start.as_ref().map_or("?".to_owned(), |start| start.host.clone());
    let state = match view.has_ended {
        true => Cell::from("ended"),
        false if view.silence() > SILENT => {
            Cell::from(format!("silent {} s", view.silence().as_secs())).bold()
        }
        false => Cell::from("not ended"),
    };
    let cells = match view.last() {
        None => std::array::from_fn(|_| "-".to_owned()),
        Some(step) => {
            // Writes that go on after a step may take longer than the step.
            let busy_s = step.drives.iter().map(|drive| drive.busy_s);
            let seconds = busy_s.fold(step.step_s, f64::max);
            let per_s = |bytes: u64| if seconds > 0.0 { bytes as f64 / seconds } else { 0.0 };
            [
                step.step.to_string(),
                format!("{:.4}", step.step_s),
                format!("{:.4}", step.own_s),
                format!("{:.4}", step.between_s),
                format!("{:.1}", view.waiting_share() * 100.0),
                format!("{:.3}", per_s(step.read_bytes) / 1e9),
                format!("{:.3}", per_s(step.written_bytes) / 1e9),
            ]
        }
    };
    let cells: [String; 7] = cells;
    let ends = [Cell::from(rank.to_string()), Cell::from(host)];
    Row::new(ends.into_iter().chain(cells.map(Cell::from)).chain([state]))
}

fn draw_drives(frame: &mut Frame<'_>, area: Rect, drives: &[DriveView]) {
    let mut order: Vec<&DriveView> = drives.iter().collect();
    order.sort_by(|a, b| b.busy_share.total_cmp(&a.busy_share));
    let widths = [
        Constraint::Min(20),
        Constraint::Length(9),
        Constraint::Length(9),
        Constraint::Length(11),
        Constraint::Length(7),
        Constraint::Length(6),
    ];
    let names = ["drive", "GB/s in", "GB/s out", "% of limit", "busy %", "depth"];
    let table = Table::new(order.into_iter().map(drive_row), widths)
        .header(Row::new(names).style(Style::new().bold()))
        .block(Block::bordered().title(format!("drives, the busiest first ({})", drives.len())));
    frame.render_widget(table, area);
}

fn drive_row(drive: &DriveView) -> Row<'static> {
    let both = drive.read_bytes_per_s + drive.written_bytes_per_s;
    let limit = drive.limit.map(|limit| both / limit.mixed_bytes_per_s * 100.0);
    Row::new([
        drive.name.clone(),
        format!("{:.3}", drive.read_bytes_per_s / 1e9),
        format!("{:.3}", drive.written_bytes_per_s / 1e9),
        limit.map_or("-".to_owned(), |limit| format!("{limit:.0}")),
        format!("{:.0}", drive.busy_share * 100.0),
        drive.depth_max.to_string(),
    ])
}
