//! The resources of a process, and whether they grow.

use std::fmt;

use serde::Serialize;

use crate::render;

/// Resources of the process; `None` if the system does not report them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct ProcessUsage {
    /// Physical memory (RSS).
    resident_bytes: Option<u64>,
    threads: Option<u64>,
    /// Open file descriptors.
    descriptors: Option<u64>,
}

impl ProcessUsage {
    /// What this process holds now.
    pub(super) fn now() -> Self {
        Self {
            resident_bytes: memory_stats::memory_stats().map(|stats| stats.physical_mem as u64),
            threads: entries("/proc/self/task"),
            // One of them is for the listing.
            descriptors: entries("/dev/fd").map(|count| count.saturating_sub(1)),
        }
    }

    /// The minimum of each figure.
    fn lowest(self, other: Self) -> Self {
        let lower = |a: Option<u64>, b: Option<u64>| a.into_iter().chain(b).min();
        Self {
            resident_bytes: lower(self.resident_bytes, other.resident_bytes),
            threads: lower(self.threads, other.threads),
            descriptors: lower(self.descriptors, other.descriptors),
        }
    }
}

impl fmt::Display for ProcessUsage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |number: Option<u64>| number.map_or_else(|| "?".to_owned(), |n| n.to_string());
        let resident = self.resident_bytes.map_or_else(|| "?".to_owned(), render::bytes);
        let (threads, descriptors) = (number(self.threads), number(self.descriptors));
        write!(f, "{resident:>9} RSS {threads:>3} threads {descriptors:>3} descriptors")
    }
}

/// The number of entries of a folder in `/proc`.
fn entries(folder: &str) -> Option<u64> {
    std::fs::read_dir(folder).ok().map(|entries| entries.count() as u64)
}

/// Looks at a process again and again. The lowest figures of each interval count: a load or a request under way holds more for a
/// moment, a leak raises the lowest level.
#[derive(Debug, Default)]
pub(super) struct Watch {
    current: ProcessUsage,
    intervals: Vec<ProcessUsage>,
}

/// One figure of a process.
struct Measure {
    name: &'static str,
    get: fn(&ProcessUsage) -> Option<u64>,
    /// What it may grow by from one quarter to the next.
    slack: u64,
    show: fn(u64) -> String,
}

const MEASURES: [Measure; 3] = [
    Measure {
        name: "physical memory (RSS)",
        get: |usage| usage.resident_bytes,
        slack: 8 << 20,
        show: render::bytes,
    },
    Measure { name: "threads", get: |usage| usage.threads, slack: 2, show: |n| n.to_string() },
    Measure { name: "file descriptors", get: |usage| usage.descriptors, slack: 2, show: |n| n.to_string() },
];

/// Intervals of a quarter, below which nothing is judged.
const FEWEST: usize = 3;

impl Watch {
    /// Takes note of what the process holds.
    pub(super) fn look(&mut self, usage: ProcessUsage) {
        self.current = self.current.lowest(usage);
    }

    /// Ends an interval. Returns its lowest figures.
    pub(super) fn end_interval(&mut self) -> ProcessUsage {
        let usage = std::mem::take(&mut self.current);
        self.intervals.push(usage);
        usage
    }

    /// Describes each figure that grows: its median rises by more than the slack from the second quarter to the third and again to the
    /// fourth. The first quarter, in which caches fill, does not count.
    pub(super) fn growth(&self) -> Vec<String> {
        let quarter = self.intervals.len() / 4;
        if quarter < FEWEST {
            return Vec::new();
        }
        let quarters = self.intervals[self.intervals.len() - 3 * quarter..].chunks(quarter);
        let grows = |measure: &Measure| {
            let medians: Option<Vec<u64>> = quarters
                .clone()
                .map(|quarter| Some(median(quarter.iter().map(measure.get).collect::<Option<_>>()?)))
                .collect();
            let medians = medians?;
            let steady = medians.windows(2).all(|pair| pair[1] > pair[0] + measure.slack);
            let shown: Vec<_> = medians.iter().map(|median| (measure.show)(*median)).collect();
            steady.then(|| {
                format!("{} grow without end: {} in the last quarters", measure.name, shown.join(", "))
            })
        };
        MEASURES.iter().filter_map(grows).collect()
    }
}

fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values[values.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn growth(figures: impl IntoIterator<Item = [u64; 3]>) -> Vec<String> {
        let mut watch = Watch::default();
        for [memory, threads, descriptors] in figures {
            let usage = |extra| ProcessUsage {
                resident_bytes: Some((memory + extra) << 20),
                threads: Some(threads + extra),
                descriptors: Some(descriptors),
            };
            // A load under way, and then none.
            watch.look(usage(500));
            watch.look(usage(0));
            assert_eq!(watch.end_interval(), usage(0));
        }
        watch.growth()
    }

    #[test]
    fn what_levels_off_or_wavers_does_not_grow() {
        assert_eq!(growth((0..40).map(|_| [100, 9, 12])), [""; 0]);
        assert_eq!(growth((0..40).map(|n| [(100 + 20 * n).min(500), 9 + n.min(9), 12 + n % 3])), [""; 0]);
        assert_eq!(growth((0..11).map(|n| [100 * n, n, n])), [""; 0], "too short to tell");
    }

    #[test]
    fn a_leak_is_found_by_its_name() {
        let found = growth((0..40).map(|n| [100, 9 + n, 12]));
        assert!(found.len() == 1 && found[0].starts_with("threads grow"), "{found:?}");
        let found = growth((0..40).map(|n| [100 + 2 * n, 9, 12 + n / 2]));
        assert!(
            found[0].starts_with("physical memory") && found[1].starts_with("file descriptors"),
            "{found:?}"
        );
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_is_measured() {
        let before = ProcessUsage::now();
        let files: Vec<_> = (0..5).map(|_| std::fs::File::open("/proc/self/status").unwrap()).collect();
        let after = ProcessUsage::now();
        assert!(after.resident_bytes > Some(1 << 20) && after.threads >= Some(1));
        assert!(after.descriptors >= before.descriptors.map(|n| n + 5), "{before} {after}");
        drop(files);
    }
}
