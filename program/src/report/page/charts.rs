//! The kinds of pictures, drawn with plotters as SVG. plotters knows no variables of CSS, so
//! placeholder colours stand for those of the page and are replaced afterwards.

use plotters::coord::Shift;
use plotters::prelude::*;

const WIDTH: u32 = 960;
/// Series that have a colour of their own.
pub(super) const COLOURS: usize = 8;

const INK: RGBColor = RGBColor(1, 1, 1);
const GRID: RGBColor = RGBColor(2, 2, 2);

fn placeholder(colour: usize) -> RGBColor {
    RGBColor(10 + (colour % COLOURS) as u8, 0, 1)
}

/// Points of one colour; dashed ones are limits.
pub(super) struct Curve {
    pub colour: usize,
    pub points: Vec<(f64, f64)>,
    pub is_limit: bool,
}

/// A rectangle from and to, in a row.
pub(super) struct Bar {
    pub row: usize,
    pub from: f64,
    pub to: f64,
    pub colour: usize,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws, and puts the page's colours in. A picture that cannot be drawn is empty.
fn draw(height: u32, paint: impl FnOnce(&Area<'_>) -> Result<(), String>) -> String {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        let painted = paint(&area).and_then(|()| area.present().map_err(|it| it.to_string()));
        if let Err(error) = painted {
            tracing::warn!("a picture cannot be drawn: {error}");
        }
    }
    let hex = |RGBColor(r, g, b): RGBColor| format!("\"#{r:02X}{g:02X}{b:02X}\"");
    let mut svg = svg.replace(&hex(INK), "\"var(--ink)\"").replace(&hex(GRID), "\"var(--grid)\"");
    for colour in 0..COLOURS {
        svg = svg.replace(&hex(placeholder(colour)), &format!("\"var(--s{colour})\""));
    }
    // The picture is as wide as the page lets it be.
    svg.replacen(&format!("width=\"{WIDTH}\" height=\"{height}\" "), "", 1)
}

fn message(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// A little more than the largest value, so that nothing touches the frame.
fn top(values: impl Iterator<Item = f64>) -> f64 {
    let max = values.filter(|value| value.is_finite()).fold(0.0, f64::max);
    if max > 0.0 { max * 1.08 } else { 1.0 }
}

/// A number on an axis, without zeros at its end.
fn short(value: f64) -> String {
    let text = format!("{value:.4}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text.is_empty() || text == "-0" { "0".to_owned() } else { text.to_owned() }
}

/// Curves over numbered steps, or whatever `x` says.
pub(super) fn curves(x: &str, y: &str, curves: &[Curve], has_dots: bool) -> String {
    let points = || curves.iter().flat_map(|curve| curve.points.iter().copied());
    let x_min = points().map(|point| point.0).fold(f64::INFINITY, f64::min).min(1e300);
    let x_max = points().map(|point| point.0).fold(x_min, f64::max);
    let x_range = if x_max > x_min { x_min..x_max } else { x_min - 0.5..x_min + 0.5 };
    let y_top = top(points().map(|point| point.1));
    draw(320, |area| {
        let mut builder = ChartBuilder::on(area);
        builder.margin(12).margin_right(20).x_label_area_size(44).y_label_area_size(64);
        let mut chart = builder.build_cartesian_2d(x_range, 0.0..y_top).map_err(message)?;
        let text = ("sans-serif", 15).into_font().color(&INK);
        let mut mesh = chart.configure_mesh();
        mesh.bold_line_style(GRID).light_line_style(TRANSPARENT).axis_style(INK);
        mesh.x_label_formatter(&|value| short(*value)).y_label_formatter(&|value| short(*value));
        mesh.x_desc(x).y_desc(y).label_style(text.clone()).axis_desc_style(text);
        mesh.x_labels(10).y_labels(6).draw().map_err(message)?;
        for curve in curves {
            let style = placeholder(curve.colour).stroke_width(if curve.is_limit { 1 } else { 2 });
            if curve.is_limit {
                let dashed = DashedLineSeries::new(curve.points.iter().copied(), 6, 4, style);
                chart.draw_series(dashed).map_err(message)?;
            } else {
                let line = LineSeries::new(curve.points.iter().copied(), style);
                chart.draw_series(line).map_err(message)?;
            }
            if (has_dots || curve.points.len() == 1) && !curve.is_limit {
                let dot = |at: &(f64, f64)| Circle::new(*at, 4, placeholder(curve.colour).filled());
                chart.draw_series(curve.points.iter().map(dot)).map_err(message)?;
            }
        }
        Ok(())
    })
}

/// Bars in named rows, the first row on top.
pub(super) fn bars(x: &str, rows: &[String], bars: &[Bar]) -> String {
    const ROW: u32 = 26;
    const LABEL_CHARS_MAX: usize = 34;
    let count = rows.len().max(1) as i32;
    let label = |row: i32| -> String {
        let name = rows.get(row as usize).map_or("", String::as_str);
        let chars = name.chars().count();
        if chars > LABEL_CHARS_MAX {
            // Paths differ at their ends.
            format!("...{}", name.chars().skip(chars - LABEL_CHARS_MAX).collect::<String>())
        } else {
            name.to_owned()
        }
    };
    let right = top(bars.iter().map(|bar| bar.to)) / 1.06;
    let longest = (0..count).map(|row| label(row).chars().count()).max().unwrap_or(0) as u32;
    let label_width = 24 + 8 * longest;
    draw(72 + ROW * count as u32, |area| {
        let mut builder = ChartBuilder::on(area);
        builder.margin(12).margin_right(20).margin_left(label_width).x_label_area_size(44);
        let mut chart =
            builder.build_cartesian_2d(0.0..right, f64::from(count)..0.0).map_err(message)?;
        let text = ("sans-serif", 15).into_font().color(&INK);
        let mut mesh = chart.configure_mesh();
        mesh.bold_line_style(GRID).light_line_style(TRANSPARENT).axis_style(INK);
        mesh.disable_y_mesh().disable_y_axis().x_label_formatter(&|value| short(*value));
        mesh.x_desc(x).label_style(text.clone()).axis_desc_style(text);
        mesh.x_labels(10).draw().map_err(message)?;
        let rectangle = |bar: &Bar| {
            let row = bar.row as f64;
            let corners = [(bar.from, row + 0.12), (bar.to, row + 0.88)];
            Rectangle::new(corners, placeholder(bar.colour).filled())
        };
        chart.draw_series(bars.iter().map(rectangle)).map_err(message)?;
        let style = ("sans-serif", 14).into_font().color(&INK);
        let style = style.pos(plotters::style::text_anchor::Pos::new(
            plotters::style::text_anchor::HPos::Right,
            plotters::style::text_anchor::VPos::Center,
        ));
        for row in 0..count {
            let (_, y) = chart.backend_coord(&(0.0, f64::from(row) + 0.5));
            area.draw(&Text::new(label(row), (label_width as i32 - 8, y), style.clone()))
                .map_err(message)?;
        }
        Ok(())
    })
}
