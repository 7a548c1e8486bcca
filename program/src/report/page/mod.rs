//! Results as one page of HTML that needs nothing else: pictures are inline SVG, each with the
//! table behind it; legible in light and dark, on paper, and by keyboard.

mod charts;
mod figures;

use std::ops::RangeFrom;

use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde_json::Value;

use self::figures::Figure;
use super::result_file::ResultFile;
use super::terminal;
use optswap::internals::telemetry::world_report;
use optswap::internals::units::Bytes;

const STYLE: &str = include_str!("style.css");

/// Paper has no buttons, so everything is unfolded before it is printed.
const UNFOLD: &str = "
addEventListener('beforeprint', () => {
  for (const it of document.querySelectorAll('details')) it.open = true;
});
";

/// The whole page. Whatever comes from a file is text on it, never markup.
pub fn html_page(results: &[ResultFile]) -> String {
    let names: Vec<&str> = results.iter().map(|result| result.name.as_str()).collect();
    let title = format!("optswap: {}", names.join(", "));
    let mut numbers = 1..;
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                link rel="icon" href="data:,";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header { h1 { (title) } (menu(results)) }
                main {
                    @if results.len() > 1 {
                        section id="scaling" {
                            h2 { "All results" }
                            (numbered(&figures::scaling(results), &mut numbers))
                        }
                    }
                    @for (index, result) in results.iter().enumerate() {
                        (section(index, result, &mut numbers))
                    }
                }
                script { (PreEscaped(UNFOLD)) }
            }
        }
    };
    page.into_string()
}

fn menu(results: &[ResultFile]) -> Markup {
    html! {
        nav aria-label="Results" {
            ul {
                @if results.len() > 1 {
                    li { a href="#scaling" { "All results" } }
                }
                @for (index, result) in results.iter().enumerate() {
                    li { a href={ "#result-" (index) } { (result.name) } }
                }
            }
        }
    }
}

fn section(index: usize, result: &ResultFile, numbers: &mut RangeFrom<usize>) -> Markup {
    html! {
        section id={ "result-" (index) } {
            h2 { (result.name) }
            p.verdict { (result.verdict().words) }
            dl.figures {
                @for (name, value) in terminal::key_figures(result) {
                    div { dt { (name) } dd { (value) } }
                }
            }
            (numbered(&figures::of(result), numbers))
            details {
                summary { "Tables of the world" }
                pre tabindex="0" { (world_report(&result.rank_records, Bytes(0))) }
            }
            details {
                summary { "Command, configuration, machine" }
                p { code { (result.command.join(" ")) } }
                pre tabindex="0" { (indented(&result.config)) }
                pre tabindex="0" { (indented(&result.machine)) }
            }
        }
    }
}

fn indented(value: &Value) -> String {
    format!("{value:#}")
}

/// Figures with the next numbers of the page.
fn numbered(figures: &[Figure], numbers: &mut RangeFrom<usize>) -> Markup {
    html! {
        @for (it, number) in figures.iter().zip(numbers) { (figure(it, number)) }
    }
}

fn figure(it: &Figure, number: usize) -> Markup {
    html! {
        figure id={ "figure-" (number) } {
            h3 { (it.title) }
            p { (it.caption) }
            @if !it.legend.is_empty() {
                ul.legend {
                    @for (colour, name) in &it.legend {
                        li { span class={ "c" (colour) } {} (name) }
                    }
                }
            }
            div.picture role="img" aria-label={ (it.title) ". " (it.caption) } {
                (PreEscaped(&it.svg))
            }
            details {
                summary { "Table" }
                div.wide tabindex="0" { (table(it)) }
            }
        }
    }
}

fn table(figure: &Figure) -> Markup {
    html! {
        table {
            thead {
                tr { @for name in &figure.header { th { (name) } } }
            }
            tbody {
                @for row in &figure.rows {
                    tr { @for cell in row { td { (cell) } } }
                }
            }
        }
    }
}
