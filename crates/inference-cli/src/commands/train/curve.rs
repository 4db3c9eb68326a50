//! The curves in a terminal: training losses as dots of braille, validations as marks.

use std::fmt::Write as _;

use super::metrics::Curves;

/// Dots of a braille character across and down.
const DOTS: (usize, usize) = (2, 4);

/// Draws the curves in a field of this many characters, with an axis; empty if there is nothing to draw.
pub(super) fn draw(curves: &Curves, (width, height): (usize, usize)) -> String {
    let Some((last, low, high)) = curves.extent() else { return String::new() };
    let place = |(step, loss): (usize, f64), (across, down): (usize, usize)| {
        let x = step as f64 / last as f64 * (across - 1) as f64;
        let y = (high - loss) / (high - low) * (down - 1) as f64;
        (x.round() as usize, y.round() as usize)
    };
    let mut field = vec![vec!['\u{2800}'; width]; height];
    for point in finite(&curves.training) {
        let (x, y) = place(point, (width * DOTS.0, height * DOTS.1));
        let cell = &mut field[y / DOTS.1][x / DOTS.0];
        let lit = u32::from(*cell) | dot(x % DOTS.0, y % DOTS.1);
        *cell = char::from_u32(lit).unwrap_or(*cell);
    }
    for point in finite(&curves.validation) {
        let (x, y) = place(point, (width, height));
        field[y][x] = '●';
    }
    let mut text = String::new();
    for (row, cells) in field.iter().enumerate() {
        let label = match row {
            0 => format!("{high:8.3}"),
            row if row + 1 == height => format!("{low:8.3}"),
            _ => " ".repeat(8),
        };
        let line: String = cells.iter().collect();
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{label} ┤{}", line.trim_end_matches('\u{2800}'));
    }
    let _ = writeln!(text, "{} └{}", " ".repeat(8), "─".repeat(width));
    let marks = if curves.validation.is_empty() { "" } else { ", ● validation" };
    let _ = writeln!(text, "{} loss over {last} steps{marks}", " ".repeat(8));
    text
}

fn finite(points: &[(usize, f64)]) -> impl Iterator<Item = (usize, f64)> {
    points.iter().copied().filter(|(_, loss)| loss.is_finite())
}

/// The bit of a dot in Unicode's braille patterns, which count down the left column, then the right, then the last row.
fn dot(x: usize, y: usize) -> u32 {
    match (x, y) {
        (x, 3) => 0x40 << x,
        (x, y) => 1 << (3 * x + y),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_falling_loss_runs_from_corner_to_corner() {
        let training = (0..=40).map(|step| (step, 4.0 - step as f64 / 10.0)).collect();
        let curves = Curves { training, validation: vec![(0, 4.0), (40, 0.0)] };
        let text = draw(&curves, (10, 4));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 6);
        assert!(lines[0].starts_with("   4.000 ┤●") && lines[3].ends_with('●'), "{text}");
        assert_eq!(lines[3].chars().count(), 8 + 2 + 10);
        assert_eq!(lines[5].trim(), "loss over 40 steps, ● validation");
        assert_eq!(draw(&Curves::default(), (10, 4)), "");
        let broken = Curves { training: vec![(1, f64::NAN), (2, 1.0)], validation: vec![] };
        assert!(draw(&broken, (10, 4)).contains("1.000"));
    }
}
