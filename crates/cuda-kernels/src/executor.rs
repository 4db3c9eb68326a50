//! Steps of a decoder, captured once for each number of rows and replayed.

use std::{
    array,
    collections::HashMap,
    mem,
    sync::Arc,
    thread::{self, JoinHandle},
};

use crate::{
    Compiler, Error, Event, Graph, Options, Part, Result, Sampling, Stream,
    class::{BUCKETS, Class, Logits, MAX_ROWS},
    geometry::Limits,
    instance::Instance,
    memory::HostBuffer,
    spec::{Cache, DecoderSpec},
    state::State,
    step::{Planned, Planner},
    stream::Launch,
};

/// What a row reads next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// The token.
    pub token: u32,
    /// Its position; those before it are in the cache.
    pub position: usize,
}

/// Runs the steps of a decoder.
///
/// Tokens and positions live on the GPU: a step reads the token that the step before has chosen, so steps follow each other
/// without the host.
#[derive(Debug)]
pub struct Executor {
    compiler: Arc<Compiler>,
    stream: Stream,
    spec: DecoderSpec,
    state: State,
    limits: Limits,
    options: Options,
    steps: HashMap<Class, Step>,
    /// What is compiled for each bucket beside the work.
    compilations: [Compilation; BUCKETS.len()],
    rows: [RowState; MAX_ROWS],
}

#[derive(Debug, Default, Clone, Copy)]
struct RowState {
    /// The next position; `None` where the row is idle.
    position: Option<usize>,
    /// Positions that its caches have room for.
    room: usize,
    /// Tokens chosen, but for whole rounds of the history: the place of the next one.
    chosen: usize,
}

/// Kernels of a bucket.
#[derive(Debug, Default)]
enum Compilation {
    #[default]
    NotBegun,
    UnderWay(JoinHandle<Result<()>>),
    Done,
}

#[derive(Debug)]
struct Step {
    launches: Vec<(Part, Launch)>,
    graph: Graph,
}

/// A step that was enqueued.
#[derive(Debug)]
pub struct Pending {
    event: Event,
    history: Arc<HostBuffer>,
    /// For each row the place of its choice in the history.
    places: [Option<usize>; MAX_ROWS],
}

impl Pending {
    /// The token that a row has chosen, after waiting for the step: that with the largest logit, the first of equal ones, unless it
    /// was drawn; `None` if logits are not finite. It has to be asked before [`Options::history`] more steps are enqueued.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the row was idle; [`Error::Driver`], also of work that failed.
    pub fn token(&self, row: usize) -> Result<Option<u32>> {
        self.wait()?;
        let place = self.places.get(row).copied().flatten();
        let Some(chosen) = place.and_then(|place| self.history.read(place)) else {
            return Err(Error::invalid("a row", row, "one of the step"));
        };
        Ok(u32::try_from(chosen).ok())
    }

    /// Waits for the step.
    ///
    /// # Errors
    /// [`Error::Driver`], also of work that failed.
    pub fn wait(&self) -> Result<()> {
        self.event.wait()
    }
}

impl Executor {
    /// An executor of the decoder, with nothing captured yet.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the description makes no sense; [`Error::Driver`].
    ///
    /// # Safety
    /// The addresses in `spec` are those of live memory of this GPU, as large and laid out as `spec` says, for as long as this
    /// exists. Those given to [`Self::set_caches`] are, too, until the row is set to idle or gets others; only steps write to
    /// them while they run.
    pub unsafe fn new(compiler: Arc<Compiler>, spec: DecoderSpec, options: Options) -> Result<Self> {
        spec.check()?;
        let device = compiler.device();
        let state = State::new(device, &spec, options)?;
        let limits = Limits::from(device);
        let stream = Stream::new(device)?;
        let (steps, compilations, rows) = Default::default();
        Ok(Self { compiler, stream, spec, state, limits, options, steps, compilations, rows })
    }

    /// The stream of the steps.
    #[must_use]
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Compiles and captures the step of the smallest bucket that holds `rows` rows of at most `positions` positions, where that
    /// is not done yet. [`Self::run`] does it, too.
    ///
    /// # Errors
    /// [`Error::Invalid`] where no bucket does; errors of the compiler and the driver.
    pub fn prepare(&mut self, rows: usize, positions: usize, logits: Logits) -> Result<()> {
        let key = Class::of(rows, positions, logits)?;
        if self.steps.contains_key(&key) {
            return Ok(());
        }
        let planned = Planner::plan(&self.spec, &self.state, self.limits, key)?;
        let kernels = self.compiler.kernels(&instances(&planned))?;
        let launches = planned.into_iter().zip(kernels).enumerate().map(|(i, (planned, kernel))| {
            let launch = Launch {
                kernel,
                size: planned.size,
                argument: planned.argument,
                early: i > 0 && self.options.early_start,
            };
            (planned.part, launch)
        });
        let launches: Vec<_> = launches.collect();
        let graph = self.capture(&launches, |_| true)?;
        self.steps.insert(key, Step { launches, graph });
        Ok(())
    }

    /// Has threads load the kernels of all buckets that earlier processes have compiled.
    ///
    /// # Errors
    /// Those of planning.
    pub fn load_kept(&mut self) -> Result<()> {
        for (bucket, rows) in BUCKETS.into_iter().enumerate() {
            let kernels = self.kernels(rows)?;
            if matches!(self.compilations[bucket], Compilation::NotBegun) && self.compiler.keeps(&kernels) {
                self.compilations[bucket] = self.begin(kernels);
            }
        }
        Ok(())
    }

    /// Whether the kernels for so many rows are compiled. If not, a thread begins to compile them, which takes seconds.
    ///
    /// # Errors
    /// [`Error::Invalid`] where no bucket holds the rows; what the thread came to.
    pub fn is_compiled(&mut self, rows: usize) -> Result<bool> {
        let rows = Class::of(rows, 0, Logits::Draw)?.rows;
        let bucket = BUCKETS.iter().position(|&bucket| bucket == rows).unwrap_or(0);
        self.compilations[bucket] = match mem::take(&mut self.compilations[bucket]) {
            Compilation::NotBegun => {
                let kernels = self.kernels(rows)?;
                if self.compiler.has(&kernels) { Compilation::Done } else { self.begin(kernels) }
            }
            Compilation::UnderWay(thread) if thread.is_finished() => {
                match thread.join() {
                    Ok(compiled) => compiled?,
                    Err(panic) => std::panic::resume_unwind(panic),
                }
                Compilation::Done
            }
            other => other,
        };
        Ok(matches!(self.compilations[bucket], Compilation::Done))
    }

    /// The kernels of a bucket: those of a step that draws, which has all that others have.
    fn kernels(&self, rows: usize) -> Result<Vec<Instance>> {
        let class = Class::of(rows, 0, Logits::Draw)?;
        Ok(instances(&Planner::plan(&self.spec, &self.state, self.limits, class)?))
    }

    fn begin(&self, kernels: Vec<Instance>) -> Compilation {
        let compiler = self.compiler.clone();
        Compilation::UnderWay(thread::spawn(move || compiler.kernels(&kernels).map(drop)))
    }

    /// Tells where a row's keys and values are, layer by layer. Waits for steps that run.
    ///
    /// # Errors
    /// [`Error::Invalid`] where there is no such row, or an address or a capacity makes no sense; [`Error::Driver`].
    pub fn set_caches(&mut self, row: usize, caches: &[Cache]) -> Result<()> {
        let layers = self.spec.layers.len();
        if caches.len() != layers || row >= MAX_ROWS {
            let expected = format!("{layers} layers, of a row below {MAX_ROWS}");
            return Err(Error::invalid("caches", format!("{} layers, row {row}", caches.len()), expected));
        }
        let mut room = i32::MAX as usize;
        for (Cache { keys, values, capacity }, layer) in caches.iter().zip(&self.spec.layers) {
            let aligned = [keys, values].iter().all(|ptr| !ptr.is_null() && ptr.0.is_multiple_of(16));
            if !aligned || *capacity == 0 || *capacity > i32::MAX as usize {
                let found = format!("{:#x} and {:#x}, {capacity} positions", keys.0, values.0);
                return Err(Error::invalid("a cache", found, "multiples of 16, of some positions"));
            }
            // A window's cache is used again and again once it holds the window.
            if layer.attention.window.is_none_or(|window| window > *capacity) {
                room = room.min(*capacity);
            }
        }
        self.stream.synchronize()?;
        self.rows[row].room = room;
        for (layer, Cache { keys, values, capacity }) in caches.iter().enumerate() {
            let place = layer * MAX_ROWS + row;
            self.state.tables.set(place, [keys.0, values.0], *capacity as i32);
        }
        Ok(())
    }

    /// Tells what the first rows read next, or that they are idle, as all others are. Waits for steps that run.
    ///
    /// # Errors
    /// [`Error::Invalid`] where there are not so many rows, or no such token or position; [`Error::Driver`].
    pub fn set_rows(&mut self, next: &[Option<Row>]) -> Result<()> {
        check_rows(next.len())?;
        let vocabulary = self.spec.vocabulary();
        let (mut rows, mut tokens) = (self.rows, [0; MAX_ROWS]);
        for (index, row) in rows.iter_mut().enumerate() {
            let next = next.get(index).copied().flatten();
            *row = row.moved_to(next, self.state.history_len);
            row.check_room(1)?;
            let Some(Row { token, .. }) = next else { continue };
            if token as usize >= vocabulary {
                return Err(Error::invalid("a token", token, format!("below {vocabulary}")));
            }
            tokens[index] = token as i32;
        }
        self.stream.synchronize()?;
        self.rows = rows;
        self.state.steps.write(0, &rows.map(|row| row.chosen as i32))?;
        self.state.token.write(0, &tokens)?;
        self.state.position.write(0, &rows.map(|row| row.position.map_or(-1, |position| position as i32)))
    }

    /// Tells how the first rows choose their tokens in steps that [draw](Logits::Draw): the likeliest, unless it is told, as all others
    /// do. Waits for steps that run.
    ///
    /// # Errors
    /// [`Error::Invalid`] where there are not so many rows, or a temperature is no number above 0; [`Error::Driver`].
    pub fn set_sampling(&mut self, sampling: &[Option<Sampling>]) -> Result<()> {
        check_rows(sampling.len())?;
        let mut words = [Sampling::GREEDY; MAX_ROWS];
        for (words, sampling) in words.iter_mut().zip(sampling.iter().copied()) {
            *words = sampling.map_or(Ok(Sampling::GREEDY), |sampling| sampling.words())?;
        }
        self.stream.synchronize()?;
        self.state.draws.write(0, words.as_flattened())
    }

    /// Has the first rows read these tokens next, instead of what they chose. Waits for steps that run.
    ///
    /// # Errors
    /// [`Error::Invalid`] where there is no such row or token; [`Error::Driver`].
    pub fn set_tokens(&mut self, tokens: &[u32]) -> Result<()> {
        let vocabulary = self.spec.vocabulary();
        if let Some(token) = tokens.iter().find(|token| **token as usize >= vocabulary) {
            return Err(Error::invalid("a token", token, format!("below {vocabulary}")));
        }
        check_rows(tokens.len())?;
        self.stream.synchronize()?;
        self.state.token.write(0, &tokens.iter().map(|token| *token as i32).collect::<Vec<_>>())
    }

    /// Enqueues `steps` steps of the first `rows` rows.
    ///
    /// # Errors
    /// [`Error::Invalid`] where no bucket holds the rows, or a row would outgrow its cache; errors of the compiler and the driver.
    pub fn run(&mut self, rows: usize, steps: usize, logits: Logits) -> Result<()> {
        let bucket = Class::of(rows, 0, logits)?.rows;
        let states = &self.rows[..bucket];
        states.iter().try_for_each(|row| row.check_room(steps))?;
        let longest = states.iter().filter_map(|row| row.position).max().unwrap_or(0) + steps;
        self.prepare(rows, longest, logits)?;
        self.state.tables.write()?;
        let step = &self.steps[&Class::of(rows, longest, logits)?];
        for _ in 0..steps {
            self.stream.replay(&step.graph)?;
        }
        for row in &mut self.rows[..bucket] {
            if let Some(position) = &mut row.position {
                *position += steps;
                row.chosen += steps;
            }
        }
        Ok(())
    }

    /// Enqueues a step of the first `rows` rows.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn submit(&mut self, rows: usize, logits: Logits) -> Result<Pending> {
        self.run(rows, 1, logits)?;
        let length = self.state.history_len;
        let bucket = Class::of(rows, 0, logits)?.rows;
        let places = array::from_fn(|row| {
            let state = self.rows[row];
            (row < bucket && state.position.is_some()).then(|| row * length + (state.chosen - 1) % length)
        });
        Ok(Pending { event: self.stream.record()?, history: self.state.history.clone(), places })
    }

    /// The last `count` tokens that a row has chosen, the newest last. Waits for steps that run.
    ///
    /// # Errors
    /// [`Error::Invalid`] where so many are not remembered, or a logit was not finite; [`Error::Driver`].
    pub fn tokens(&self, row: usize, count: usize) -> Result<Vec<u32>> {
        if row >= MAX_ROWS {
            return Err(Error::invalid("a row", row, format!("below {MAX_ROWS}")));
        }
        self.stream.synchronize()?;
        let (length, chosen) = (self.state.history_len, self.rows[row].chosen);
        if count > chosen.min(length) {
            let expected = format!("at most {}", chosen.min(length));
            return Err(Error::invalid("the number of tokens", count, expected));
        }
        let token = |step| {
            let token = self.state.history.read(row * length + step % length);
            let token = token.and_then(|token| u32::try_from(token).ok());
            token.ok_or_else(|| Error::invalid("a logit", "NaN or infinite", "finite"))
        };
        (chosen - count..chosen).map(token).collect()
    }

    /// The logits of a row in the last step that kept them. Waits for steps that run.
    ///
    /// # Errors
    /// [`Error::Invalid`] where there is no such row, or the caller stores them; [`Error::Driver`].
    pub fn logits(&self, row: usize) -> Result<Vec<f32>> {
        let Some(logits) = self.state.own_logits.as_ref().filter(|_| row < MAX_ROWS) else {
            return Err(Error::invalid("logits", format!("those of row {row}"), "of a row, and stored here"));
        };
        self.stream.synchronize()?;
        let vocabulary = self.spec.vocabulary();
        logits.read(row * vocabulary, vocabulary)
    }

    /// Fills what passes from kernel to kernel with NaN, so that what a step does not write shows.
    ///
    /// # Errors
    /// [`Error::Driver`]
    pub fn poison(&mut self) -> Result<()> {
        self.stream.synchronize()?;
        self.state.poison()
    }

    /// Launches of a prepared step, with what each is for.
    pub fn parts(&self, rows: usize, positions: usize) -> Vec<Part> {
        let step = Class::of(rows, positions, Logits::Discard).ok().and_then(|key| self.steps.get(&key));
        step.map(|step| step.launches.iter().map(|(part, _)| *part).collect()).unwrap_or_default()
    }

    /// Replays only some launches of a prepared step, `times` times, and says how many milliseconds one replay took. Tokens and
    /// positions are those of the last step; caches and tokens are worth nothing afterwards.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the step is not prepared; [`Error::Driver`].
    pub fn time(
        &mut self,
        [rows, positions]: [usize; 2],
        times: usize,
        wanted: impl Fn(Part) -> bool,
    ) -> Result<f32> {
        let Some(step) = self.steps.get(&Class::of(rows, positions, Logits::Discard)?) else {
            return Err(Error::invalid("the step", format!("not prepared for {rows} rows"), "prepared"));
        };
        let graph = self.capture(&step.launches, wanted)?;
        self.stream.replay(&graph)?;
        let start = self.stream.record_timed()?;
        for _ in 0..times {
            self.stream.replay(&graph)?;
        }
        let end: Event = self.stream.record_timed()?;
        Ok(start.milliseconds_to(&end)? / times.max(1) as f32)
    }

    fn capture(&self, launches: &[(Part, Launch)], wanted: impl Fn(Part) -> bool) -> Result<Graph> {
        let wanted = launches.iter().filter(|(part, _)| wanted(*part));
        let mut launches: Vec<_> = wanted.map(|(_, launch)| launch.clone()).collect();
        if let Some(first) = launches.first_mut() {
            first.early = false;
        }
        // SAFETY: addresses are those of `state`, which lives as long as the graph, and those the caller vouches for.
        unsafe { self.stream.capture(&launches) }
    }
}

impl RowState {
    /// The state of a row that is set to another token. What it chose before may still be unread, so the next token goes elsewhere.
    fn moved_to(self, next: Option<Row>, history: usize) -> Self {
        Self { position: next.map(|next| next.position), chosen: self.chosen % history, ..self }
    }

    /// Whether the row has room for `steps` more positions.
    fn check_room(&self, steps: usize) -> Result<()> {
        let end = self.position.map_or(0, |position| position.saturating_add(steps));
        if end > self.room {
            let expected = format!("at most the cache's capacity, {}", self.room);
            return Err(Error::invalid("the end of a row", end, expected));
        }
        Ok(())
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        // Steps that run use memory that is freed next.
        let _ = self.stream.synchronize();
        for compilation in &mut self.compilations {
            if let Compilation::UnderWay(thread) = mem::take(compilation) {
                // NVRTC must not run while the process ends.
                self.compiler.stop();
                let _ = thread.join();
            }
        }
    }
}

fn check_rows(rows: usize) -> Result<()> {
    if rows <= MAX_ROWS {
        return Ok(());
    }
    Err(Error::invalid("the number of rows", rows, format!("at most {MAX_ROWS}")))
}

fn instances(planned: &[Planned]) -> Vec<Instance> {
    planned.iter().map(|planned| planned.instance).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_ends_where_its_caches_end() {
        let row = RowState { position: Some(10), room: 12, chosen: 0 };
        assert!(row.check_room(2).is_ok() && row.check_room(3).is_err());
        assert!(RowState { position: None, ..row }.check_room(100).is_ok());
    }

    #[test]
    fn a_row_that_is_set_again_keeps_what_it_chose() {
        let row = RowState { position: Some(10), room: 12, chosen: 64 + 3 };
        let moved = row.moved_to(Some(Row { token: 1, position: 4 }), 64);
        assert_eq!((moved.position, moved.room, moved.chosen), (Some(4), 12, 3));
        assert_eq!(moved.moved_to(None, 64).chosen, 3);
    }
}
