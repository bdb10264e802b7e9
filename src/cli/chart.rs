//! A line chart as SVG, and a page around it. Pure text: no fonts, no drawing library.

use std::fmt::Write as _;

/// The picture's size; browsers scale it.
const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 480.0;
/// Room for the title, the labels and the legend.
const LEFT: f64 = 84.0;
const RIGHT: f64 = 30.0;
const TOP: f64 = 96.0;
const BOTTOM: f64 = 64.0;

/// Height of a mark's words.
const MARK_ROW: f64 = 22.0;

/// Sans-serif letters of 14 px are about so wide on average.
const LETTER: f64 = 7.4;

/// Width of a line.
const LINE: f64 = 3.0;

/// Lines that may coincide: the last one's width, and how much wider each before it is, so that all stay visible.
const NARROWEST: f64 = 2.0;
const WIDER: f64 = 1.5;

/// Colours that colour-blind readers tell apart (Okabe and Ito).
pub(super) const COLOURS: [&str; 6] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9",
];

/// A chart.
#[derive(Debug, Default)]
pub(super) struct Chart {
    pub(super) title: String,
    pub(super) subtitle: String,
    pub(super) x_label: String,
    pub(super) y_label: String,
    /// Whether each doubling of x takes the same room.
    pub(super) doubling: bool,
    pub(super) lines: Vec<Line>,
    pub(super) marks: Vec<Mark>,
}

/// A line through points.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
    /// Points that were measured one by one; such lines can coincide.
    pub(super) dots: bool,
}

/// A moment worth a word: a vertical line in the colour of line `of`.
#[derive(Debug)]
pub(super) struct Mark {
    pub(super) x: f64,
    pub(super) text: String,
    pub(super) of: usize,
}

impl Chart {
    /// The picture.
    pub(super) fn svg(&self) -> String {
        let scale = Scale::of(self);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             font-family=\"Helvetica, Arial, sans-serif\" font-size=\"14\" fill=\"#333\">\n\
             <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
        );
        put(
            &mut svg,
            (LEFT, 30.0),
            "start",
            "font-size=\"20\" font-weight=\"bold\"",
            &self.title,
        );
        put(
            &mut svg,
            (LEFT, 52.0),
            "start",
            "fill=\"#666\"",
            &fitting(&self.subtitle),
        );
        self.grid(&scale, &mut svg);
        self.legend(&mut svg);
        self.draw_marks(&scale, &mut svg);
        self.draw_lines(&scale, &mut svg);
        svg.push_str("</svg>\n");
        svg
    }

    fn grid(&self, scale: &Scale, svg: &mut String) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for tick in ticks(scale.y_most) {
            let y = scale.y(tick);
            line(svg, (LEFT, y), (right, y), "stroke=\"#e4e4e4\"");
            put(svg, (LEFT - 8.0, y + 5.0), "end", "", &number(tick));
        }
        let x_ticks = match self.doubling {
            true => doublings(scale.x_least, scale.x_most),
            false => ticks(scale.x_most),
        };
        for tick in x_ticks {
            let x = scale.x(tick);
            line(svg, (x, bottom), (x, bottom + 5.0), "stroke=\"#999\"");
            put(svg, (x, bottom + 21.0), "middle", "", &number(tick));
        }
        line(svg, (LEFT, bottom), (right, bottom), "stroke=\"#999\"");
        put(
            svg,
            ((LEFT + right) / 2.0, HEIGHT - 16.0),
            "middle",
            "",
            &self.x_label,
        );
        let middle = (scale.top + bottom) / 2.0;
        let turned = format!("transform=\"rotate(-90 24 {middle})\"");
        put(svg, (24.0, middle), "middle", &turned, &self.y_label);
    }

    fn legend(&self, svg: &mut String) {
        let mut x = LEFT;
        for (index, entry) in self.lines.iter().enumerate() {
            let colour = COLOURS[index % COLOURS.len()];
            line(
                svg,
                (x, 74.0),
                (x + 22.0, 74.0),
                &format!("stroke=\"{colour}\" stroke-width=\"4\""),
            );
            put(svg, (x + 29.0, 79.0), "start", "", &entry.name);
            x += 55.0 + LETTER * entry.name.chars().count() as f64;
        }
    }

    fn draw_lines(&self, scale: &Scale, svg: &mut String) {
        for (index, entry) in self.lines.iter().enumerate() {
            let colour = COLOURS[index % COLOURS.len()];
            let width = match entry.dots {
                true => NARROWEST + WIDER * (self.lines.len() - 1 - index) as f64,
                false => LINE,
            };
            let mut path = String::new();
            for (x, y) in &entry.points {
                let _ = write!(path, "{:.1},{:.1} ", scale.x(*x), scale.y(*y));
            }
            let _ = writeln!(
                svg,
                "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\" stroke-linejoin=\"round\" points=\"{}\"/>",
                path.trim_end()
            );
            for (x, y) in entry.points.iter().filter(|_| entry.dots) {
                let _ = writeln!(
                    svg,
                    "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"{:.1}\" fill=\"{colour}\"/>",
                    scale.x(*x),
                    scale.y(*y),
                    width / 2.0 + NARROWEST
                );
            }
        }
    }

    /// Each mark's words stand on a row of their own above the lines, where nothing can cross them.
    fn draw_marks(&self, scale: &Scale, svg: &mut String) {
        for (row, mark) in self.marks.iter().enumerate() {
            let colour = COLOURS[mark.of % COLOURS.len()];
            let (x, y) = (scale.x(mark.x), TOP + MARK_ROW * (row as f64 + 0.5));
            let style = format!("stroke=\"{colour}\" stroke-dasharray=\"5 4\"");
            line(svg, (x, y - 10.0), (x, HEIGHT - BOTTOM), &style);
            let fits_right = WIDTH - RIGHT - x > LETTER * mark.text.chars().count() as f64;
            let (at, anchor) = match fits_right {
                true => (x + 7.0, "start"),
                false => (x - 7.0, "end"),
            };
            put(
                svg,
                (at, y),
                anchor,
                &format!("fill=\"{colour}\""),
                &mark.text,
            );
        }
    }
}

/// From values to places.
#[derive(Debug)]
struct Scale {
    doubling: bool,
    x_least: f64,
    x_most: f64,
    y_most: f64,
    top: f64,
}

impl Scale {
    fn of(chart: &Chart) -> Self {
        let points = || chart.lines.iter().flat_map(|line| &line.points);
        let most =
            |value: fn(&(f64, f64)) -> f64| points().map(value).fold(0.0, f64::max).max(1e-9);
        let x_least = points().map(|point| point.0).fold(f64::INFINITY, f64::min);
        Self {
            doubling: chart.doubling,
            x_least: if chart.doubling {
                x_least.clamp(1e-9, 1e9)
            } else {
                0.0
            },
            x_most: most(|point| point.0),
            // The highest line keeps off the legend.
            y_most: most(|point| point.1) * 1.05,
            top: TOP + MARK_ROW * chart.marks.len() as f64,
        }
    }

    fn x(&self, value: f64) -> f64 {
        let share = match self.doubling {
            true => (value / self.x_least).log2() / (self.x_most / self.x_least).log2().max(1e-9),
            false => value / self.x_most,
        };
        LEFT + share * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        HEIGHT - BOTTOM - value / self.y_most * (HEIGHT - BOTTOM - self.top)
    }
}

/// Round numbers from zero to `most`, five to ten of them.
fn ticks(most: f64) -> Vec<f64> {
    let rough = most / 8.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|step| *step >= rough)
        .unwrap_or(rough);
    (0..=10)
        .map(|n| f64::from(n) * step)
        .filter(|tick| *tick <= most * 1.0001)
        .collect()
}

/// Powers of two between two values.
fn doublings(least: f64, most: f64) -> Vec<f64> {
    (0..32)
        .map(|n| 2f64.powi(n))
        .filter(|tick| *tick >= least && *tick <= most)
        .collect()
}

/// A tick's label, without the digits that rounding leaves.
fn number(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn line(svg: &mut String, from: (f64, f64), to: (f64, f64), style: &str) {
    let _ = writeln!(
        svg,
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" {style}/>",
        from.0, from.1, to.0, to.1
    );
}

fn put(svg: &mut String, at: (f64, f64), anchor: &str, style: &str, text: &str) {
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\" {style}>{}</text>",
        at.0,
        at.1,
        escaped(text)
    );
}

/// Text that markup cannot mistake for its own.
pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// Text that ends within the picture.
fn fitting(text: &str) -> String {
    let most = ((WIDTH - LEFT - RIGHT) / LETTER) as usize;
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// A page: heading, picture, and text as it was printed.
pub(super) fn page(title: &str, svg: &str, text: &str) -> String {
    let (title, text) = (escaped(title), escaped(text));
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>{title}</title>\n\
         <style>body {{ font: 16px/1.5 Helvetica, Arial, sans-serif; max-width: 60em; margin: 2em auto; \
         padding: 0 1em; color: #333 }} pre {{ background: #f6f6f6; padding: 1em; white-space: pre-wrap }} \
         svg {{ width: 100%; height: auto }}</style></head>\n\
         <body>\n<h1>{title}</h1>\n{svg}<pre>{text}</pre>\n</body>\n</html>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_few_round_and_within() {
        assert_eq!(ticks(7.5), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        for most in [0.003, 1.0, 9.9, 12_345.0] {
            let ticks = ticks(most);
            assert!(
                (4..=10).contains(&ticks.len()) && ticks.last() <= Some(&(most * 1.001)),
                "{most}: {ticks:?}"
            );
        }
        assert_eq!(doublings(1.0, 64.0).len(), 7);
    }

    #[test]
    fn a_long_subtitle_ends_within_the_picture() {
        assert_eq!(fitting("s3://bucket/ä"), "s3://bucket/ä");
        let long = fitting(&"ä".repeat(500));
        assert!(
            long.ends_with("ä...") && long.chars().count() < 120,
            "{long}"
        );
    }

    #[test]
    fn every_place_lies_in_the_picture_and_text_is_escaped() {
        let chart = Chart {
            title: "a < b & c".into(),
            doubling: true,
            lines: vec![Line {
                name: "x".into(),
                points: vec![(1.0, 0.0), (64.0, 10.0)],
                dots: true,
            }],
            ..Chart::default()
        };
        let svg = chart.svg();
        assert!(svg.contains("a &lt; b &amp; c") && !svg.contains("NaN") && !svg.contains("inf"));
        let scale = Scale::of(&chart);
        assert_eq!((scale.x(1.0), scale.x(64.0)), (LEFT, WIDTH - RIGHT));
        assert!(scale.y(10.0) > TOP && scale.y(0.0) == HEIGHT - BOTTOM);
    }
}
