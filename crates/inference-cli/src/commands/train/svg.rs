//! The curves as an SVG picture, which any browser shows; readable on light and dark pages.

use std::fmt::Write as _;

use super::metrics::Curves;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 360.0;
/// The field of the curves: left, top, right, bottom.
const FIELD: [f64; 4] = [64.0, 40.0, 740.0, 312.0];
/// The most points of a line: more are averaged, since nobody sees them.
const POINTS: usize = 600;

/// Draws the curves.
pub(super) fn draw(curves: &Curves) -> String {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fff\"/>\n"
    );
    // Writing to a string cannot fail.
    let _ = match curves.extent() {
        Some(extent) => writeln!(svg, "{}", field(curves, extent)),
        None => writeln!(svg, "<text x=\"64\" y=\"180\" fill=\"#555\">no steps were done</text>"),
    };
    svg.push_str("</svg>\n");
    svg
}

/// Where steps and losses lie in the field.
struct Scale {
    /// The last step.
    last: f64,
    /// The lowest loss of the axis, a tick, and the highest.
    losses: (f64, f64),
}

impl Scale {
    fn x(&self, step: f64) -> f64 {
        let [left, _, right, _] = FIELD;
        left + (right - left) * step / self.last
    }

    fn y(&self, loss: f64) -> f64 {
        let ([_, top, _, bottom], (floor, high)) = (FIELD, self.losses);
        bottom - (bottom - top) * (loss - floor) / (high - floor)
    }
}

fn field(curves: &Curves, (last, low, high): (usize, f64, f64)) -> String {
    let (distance, floor) = ticks(low, high);
    let scale = Scale { last: last as f64, losses: (floor, high) };
    let mut svg = loss_axis(&scale, distance);
    svg.push_str(&step_axis(&scale));
    let (training, validation) = (thinned(&curves.training), thinned(&curves.validation));
    let right = FIELD[2];
    let label = if validation.is_empty() { right } else { right - 76.0 };
    // Writing to a string cannot fail, here and below.
    let _ = writeln!(
        svg,
        "{}<text x=\"{label:.1}\" y=\"24\" text-anchor=\"end\" fill=\"#2563eb\">training</text>",
        line(&scale, &training, "#2563eb")
    );
    if !validation.is_empty() {
        let _ = writeln!(
            svg,
            "{}<text x=\"{right}\" y=\"24\" text-anchor=\"end\" fill=\"#d97706\">validation</text>",
            line(&scale, &validation, "#d97706")
        );
        for (step, loss) in &validation {
            let (x, y) = (scale.x(*step), scale.y(*loss));
            let _ = writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"#d97706\"/>");
        }
    }
    svg
}

/// A line and a number for each tick of the losses, `distance` apart.
fn loss_axis(scale: &Scale, distance: f64) -> String {
    let ([left, _, right, _], (floor, high)) = (FIELD, scale.losses);
    let mut svg = String::new();
    let mut tick = floor;
    while tick <= high + distance * 1e-6 {
        let at = scale.y(tick);
        let _ = writeln!(
            svg,
            "<path d=\"M{left} {at:.1}H{right}\" stroke=\"#ddd\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" \
             fill=\"#555\">{}</text>",
            left - 8.0,
            at + 4.0,
            number(tick, distance)
        );
        tick += distance;
    }
    svg
}

/// The numbers of steps, and the names of both axes.
fn step_axis(scale: &Scale) -> String {
    let [left, _, right, bottom] = FIELD;
    let distance = ticks(0.0, scale.last).0.max(1.0).round();
    let mut svg = String::new();
    let mut tick = 0.0;
    while tick <= scale.last {
        let (x, y) = (scale.x(tick), bottom + 20.0);
        let _ = writeln!(
            svg,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\" fill=\"#555\">{tick}</text>"
        );
        tick += distance;
    }
    let _ = writeln!(
        svg,
        "<text x=\"{left}\" y=\"24\" fill=\"#222\">loss, nats a token</text>\
         <text x=\"{right}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#222\">steps</text>",
        bottom + 38.0
    );
    svg
}

fn line(scale: &Scale, points: &[(f64, f64)], colour: &str) -> String {
    let places: Vec<String> =
        points.iter().map(|(step, loss)| format!("{:.1},{:.1}", scale.x(*step), scale.y(*loss))).collect();
    format!(
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" stroke-linejoin=\"round\"/>",
        places.join(" ")
    )
}

/// The distance of four to eight round numbers from `low` to `high`, and the first of them, at or below `low`.
fn ticks(low: f64, high: f64) -> (f64, f64) {
    let rough = (high - low).max(f64::MIN_POSITIVE) / 5.0;
    let power = 10_f64.powf(rough.log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].into_iter().map(|n| n * power).find(|step| *step >= rough).unwrap_or(rough);
    (step, (low / step).floor() * step)
}

/// A tick with the decimals that tell it from its neighbours.
fn number(value: f64, step: f64) -> String {
    let decimals = (-step.log10().floor()).clamp(0.0, 9.0) as usize;
    format!("{value:.decimals$}")
}

/// At most [`POINTS`] points: means of neighbours.
fn thinned(points: &[(usize, f64)]) -> Vec<(f64, f64)> {
    let finite: Vec<_> = points.iter().filter(|(_, loss)| loss.is_finite()).collect();
    let chunk = finite.len().div_ceil(POINTS).max(1);
    let mean = |points: &[&(usize, f64)]| {
        let count = points.len() as f64;
        let sum = points.iter().fold((0.0, 0.0), |sum, (step, loss)| (sum.0 + *step as f64, sum.1 + loss));
        (sum.0 / count, sum.1 / count)
    };
    finite.chunks(chunk).map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_cover_the_losses() {
        assert_eq!(ticks(0.0, 1000.0), (200.0, 0.0));
        let (step, first) = ticks(1.37, 4.91);
        assert_eq!((step, first), (1.0, 1.0));
        assert_eq!(
            (number(0.5, 0.5), number(2.0, 1.0), number(0.02, 0.01)),
            ("0.5".into(), "2".into(), "0.02".into())
        );
    }

    #[test]
    fn every_point_is_inside_and_a_long_run_is_thinned() {
        let training: Vec<_> = (1..=5000).map(|step| (step, 8.0 / step as f64)).collect();
        let curves = Curves { training, validation: vec![(0, 8.0), (5000, 0.1)] };
        let svg = draw(&curves);
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n") && !svg.contains("NaN"), "{svg}");
        let (_, points) = svg.split_once("<polyline points=\"").unwrap();
        let points: Vec<_> = points.split('"').next().unwrap().split(' ').collect();
        assert!((400..=POINTS).contains(&points.len()), "{}", points.len());
        for point in points {
            let (x, y) = point.split_once(',').unwrap();
            let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
            assert!((FIELD[0]..=FIELD[2]).contains(&x) && (FIELD[1]..=FIELD[3]).contains(&y), "{point}");
        }
        assert!(draw(&Curves::default()).contains("no steps"));
        assert!(!draw(&Curves { training: vec![(1, 2.0)], validation: vec![] }).contains("NaN"));
    }
}
