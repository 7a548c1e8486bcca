//! Results as one page of HTML that needs nothing else: pictures are inline SVG, each with the
//! table behind it; legible in light and dark, on paper, and by keyboard.

mod charts;
mod figures;

use std::fmt::Write as _;

use self::figures::Figure;
use super::result_file::ResultFile;
use super::terminal;
use optswap::internals::telemetry::world_report;
use optswap::internals::units::Bytes;

const STYLE: &str = include_str!("style.css");

/// As HTML wants text.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The whole page.
pub fn html_page(results: &[ResultFile]) -> String {
    let names: Vec<&str> = results.iter().map(|result| result.name.as_str()).collect();
    let title = format!("optswap: {}", names.join(", "));
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<link rel=\"icon\" href=\"data:,\">\n\
         <title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n",
        escaped(&title)
    );
    let _ =
        write!(page, "<header><h1>{}</h1>{}</header>\n<main>\n", escaped(&title), menu(results));
    let mut figures = 0;
    if results.len() > 1 {
        let _ = writeln!(page, "<section id=\"scaling\"><h2>All results</h2>");
        figures::scaling(results).iter().for_each(|it| add(&mut page, it, &mut figures));
        page.push_str("</section>\n");
    }
    for (index, result) in results.iter().enumerate() {
        section(&mut page, index, result, &mut figures);
    }
    // Paper has no buttons.
    page.push_str(
        "</main>\n<script>\naddEventListener('beforeprint', () => {\n  \
         for (const it of document.querySelectorAll('details')) it.open = true;\n});\n</script>\n\
         </body>\n</html>\n",
    );
    page
}

fn menu(results: &[ResultFile]) -> String {
    let mut menu = String::from("<nav aria-label=\"Results\"><ul>");
    if results.len() > 1 {
        menu.push_str("<li><a href=\"#scaling\">All results</a></li>");
    }
    for (index, result) in results.iter().enumerate() {
        let name = escaped(&result.name);
        let _ = write!(menu, "<li><a href=\"#result-{index}\">{name}</a></li>");
    }
    menu + "</ul></nav>"
}

fn section(page: &mut String, index: usize, result: &ResultFile, figures: &mut usize) {
    let name = escaped(&result.name);
    let _ = writeln!(page, "<section id=\"result-{index}\"><h2>{name}</h2>");
    let _ = writeln!(page, "<p class=\"verdict\">{}</p>", escaped(&result.verdict().words));
    page.push_str("<dl class=\"figures\">");
    for (name, value) in terminal::key_figures(result) {
        let (name, value) = (escaped(&name), escaped(&value));
        let _ = write!(page, "<div><dt>{name}</dt><dd>{value}</dd></div>");
    }
    page.push_str("</dl>\n");
    figures::of(result).iter().for_each(|figure| add(page, figure, figures));
    let report = escaped(&world_report(&result.rank_records, Bytes(0)));
    let _ = writeln!(
        page,
        "<details><summary>Tables of the world</summary>\
         <pre tabindex=\"0\">{report}</pre></details>"
    );
    let command = escaped(&result.command.join(" "));
    let pretty = |value| escaped(&serde_json::to_string_pretty(value).unwrap_or_default());
    let _ = write!(
        page,
        "<details><summary>Command, configuration, machine</summary><p><code>{command}</code></p>\
         <pre tabindex=\"0\">{}</pre><pre tabindex=\"0\">{}</pre></details>\n</section>\n",
        pretty(&result.config),
        pretty(&result.machine),
    );
}

fn add(page: &mut String, figure: &Figure, figures: &mut usize) {
    *figures += 1;
    let (title, words) = (escaped(&figure.title), escaped(&figure.words));
    let _ = write!(page, "<figure id=\"figure-{figures}\"><h3>{title}</h3><p>{words}</p>");
    if !figure.legend.is_empty() {
        page.push_str("<ul class=\"legend\">");
        for (colour, name) in &figure.legend {
            let name = escaped(name);
            let _ = write!(page, "<li><span class=\"c{colour}\"></span>{name}</li>");
        }
        page.push_str("</ul>");
    }
    let label = format!("{title}. {words}");
    let _ = write!(page, "<div class=\"picture\" role=\"img\" aria-label=\"{label}\">");
    let _ = write!(page, "{}</div>", figure.svg);
    page.push_str("<details><summary>Table</summary><div class=\"wide\" tabindex=\"0\"><table>");
    let row = |page: &mut String, cells: &[String], tag: &str| {
        page.push_str("<tr>");
        cells.iter().for_each(|cell| {
            let _ = write!(page, "<{tag}>{}</{tag}>", escaped(cell));
        });
        page.push_str("</tr>");
    };
    page.push_str("<thead>");
    row(page, &figure.header, "th");
    page.push_str("</thead><tbody>");
    figure.rows.iter().for_each(|cells| row(page, cells, "td"));
    page.push_str("</tbody></table></div></details></figure>\n");
}
