//! Steps of a decoder, captured once for each number of rows and replayed.

use crate::{
    Compiler, DevicePtr, Error, Event, Graph, Options, Part, Result, Stream,
    geometry::Limits,
    spec::DecoderSpec,
    state::{MAX_ROWS, State},
    step::Planner,
    stream::Launch,
};

/// Numbers of rows that steps are captured for. Fewer rows run in the next larger one, and the others are idle.
pub const BUCKETS: [usize; 4] = [1, 2, 4, 8];

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
    stream: Stream,
    spec: DecoderSpec,
    state: State,
    limits: Limits,
    options: Options,
    steps: [Option<Step>; BUCKETS.len()],
    rows: [Option<usize>; MAX_ROWS],
}

#[derive(Debug)]
struct Step {
    launches: Vec<(Part, Launch)>,
    graph: Graph,
}

impl Executor {
    /// An executor of the decoder, with nothing captured yet.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the description makes no sense; [`Error::Driver`].
    ///
    /// # Safety
    /// The addresses in `spec`, and those given to [`Self::set_cache`], are those of live memory of this GPU, as large and
    /// laid out as `spec` says, for as long as this exists; only steps write to the caches while they run.
    pub unsafe fn new(compiler: &Compiler, spec: DecoderSpec, options: Options) -> Result<Self> {
        spec.check()?;
        let device = compiler.device();
        let state = State::new(device, &spec, options.history)?;
        let limits = Limits::from(device);
        let stream = Stream::new(device)?;
        Ok(Self { stream, spec, state, limits, options, steps: Default::default(), rows: [None; MAX_ROWS] })
    }

    /// The stream of the steps.
    #[must_use]
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Compiles and captures the step of the smallest bucket that holds `rows` rows, where that is not done yet.
    ///
    /// # Errors
    /// [`Error::Invalid`] where no bucket does; errors of the compiler and the driver.
    pub fn prepare(&mut self, compiler: &Compiler, rows: usize) -> Result<()> {
        let bucket = bucket(rows)?;
        if self.steps[bucket].is_some() {
            return Ok(());
        }
        let rows = BUCKETS[bucket];
        let planned = Planner::plan(&self.spec, &self.state, self.limits, rows, self.options);
        let instances: Vec<_> = planned.iter().map(|planned| planned.instance).collect();
        let kernels = compiler.kernels(&instances)?;
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
        self.steps[bucket] = Some(Step { launches, graph });
        Ok(())
    }

    /// Tells where a row's keys and values of a layer are. Waits for steps that run.
    ///
    /// # Errors
    /// [`Error::Invalid`] where there is no such layer or row; [`Error::Driver`].
    pub fn set_cache(&mut self, layer: usize, row: usize, keys: DevicePtr, values: DevicePtr) -> Result<()> {
        if layer >= self.spec.layers.len() || row >= MAX_ROWS {
            let expected = format!("of {} layers and {MAX_ROWS} rows", self.spec.layers.len());
            return Err(Error::invalid("a cache", format!("of layer {layer}, row {row}"), expected));
        }
        if !keys.0.is_multiple_of(16) || !values.0.is_multiple_of(16) || keys.is_null() || values.is_null() {
            let found = format!("{:#x} and {:#x}", keys.0, values.0);
            return Err(Error::invalid("the addresses of a cache", found, "multiples of 16"));
        }
        self.stream.synchronize()?;
        self.state.keys.write(layer * MAX_ROWS + row, &[keys.0])?;
        self.state.values.write(layer * MAX_ROWS + row, &[values.0])
    }

    /// Tells what a row reads next, or that it is idle. Waits for steps that run.
    ///
    /// # Errors
    /// [`Error::Invalid`] where there is no such row, token or position; [`Error::Driver`].
    pub fn set_row(&mut self, row: usize, next: Option<Row>) -> Result<()> {
        if row >= MAX_ROWS {
            return Err(Error::invalid("a row", row, format!("below {MAX_ROWS}")));
        }
        if let Some(Row { token, .. }) = next
            && token as usize >= self.spec.vocabulary()
        {
            return Err(Error::invalid("a token", token, format!("below {}", self.spec.vocabulary())));
        }
        self.check_room(next.map(|next| next.position), 1)?;
        self.stream.synchronize()?;
        self.rows[row] = next.map(|next| next.position);
        self.state.steps.write(row, &[0_i32])?;
        self.state.token.write(row, &[next.map_or(0, |next| next.token as i32)])?;
        self.state.position.write(row, &[next.map_or(-1, |next| next.position as i32)])
    }

    /// Enqueues `steps` steps of the first `rows` rows.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the bucket is not prepared, or a row would outgrow its cache; [`Error::Driver`].
    pub fn run(&mut self, rows: usize, steps: usize) -> Result<()> {
        let bucket = bucket(rows)?;
        let Some(step) = &self.steps[bucket] else {
            return Err(Error::invalid("the step", format!("not prepared for {rows} rows"), "prepared"));
        };
        for row in 0..BUCKETS[bucket] {
            self.check_room(self.rows[row], steps)?;
        }
        for _ in 0..steps {
            self.stream.replay(&step.graph)?;
        }
        for position in self.rows[..BUCKETS[bucket]].iter_mut().flatten() {
            *position += steps;
        }
        Ok(())
    }

    /// The last `count` tokens that a row has chosen, the newest last. Waits for steps that run.
    ///
    /// # Errors
    /// [`Error::Invalid`] where so many are not remembered; [`Error::Driver`].
    pub fn tokens(&self, row: usize, count: usize) -> Result<Vec<u32>> {
        if row >= MAX_ROWS {
            return Err(Error::invalid("a row", row, format!("below {MAX_ROWS}")));
        }
        self.stream.synchronize()?;
        let length = self.state.history_len;
        let chosen = self.state.steps.read::<i32>(row, 1)?[0].max(0) as usize;
        if count > chosen.min(length) {
            let expected = format!("at most {}", chosen.min(length));
            return Err(Error::invalid("the number of tokens", count, expected));
        }
        let history = self.state.history.read::<i32>(row * length, length)?;
        Ok((chosen - count..chosen).map(|step| history[step % length] as u32).collect())
    }

    /// The logits of a row in the last step. Waits for steps that run.
    ///
    /// # Errors
    /// [`Error::Invalid`] where there is no such row, or logits are not stored; [`Error::Driver`].
    pub fn logits(&self, row: usize) -> Result<Vec<f32>> {
        if row >= MAX_ROWS || !self.options.keep_logits {
            return Err(Error::invalid("logits", format!("those of row {row}"), "of a row, and stored"));
        }
        self.stream.synchronize()?;
        let vocabulary = self.spec.vocabulary();
        self.state.logits.read(row * vocabulary, vocabulary)
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
    pub fn parts(&self, rows: usize) -> Vec<Part> {
        let step = bucket(rows).ok().and_then(|bucket| self.steps[bucket].as_ref());
        step.map(|step| step.launches.iter().map(|(part, _)| *part).collect()).unwrap_or_default()
    }

    /// Replays only some launches of a prepared step, `times` times, and says how many milliseconds one replay took. Tokens and
    /// positions are those of the last step; caches and tokens are worth nothing afterwards.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the bucket is not prepared; [`Error::Driver`].
    pub fn time(&mut self, rows: usize, times: usize, wanted: impl Fn(Part) -> bool) -> Result<f32> {
        let Some(step) = &self.steps[bucket(rows)?] else {
            return Err(Error::invalid("the step", format!("not prepared for {rows} rows"), "prepared"));
        };
        let graph = self.capture(&step.launches, wanted)?;
        self.stream.replay(&graph)?;
        let start = self.stream.record()?;
        for _ in 0..times {
            self.stream.replay(&graph)?;
        }
        let end: Event = self.stream.record()?;
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

    /// Whether a row has room for `steps` more positions.
    fn check_room(&self, position: Option<usize>, steps: usize) -> Result<()> {
        let Some(position) = position else { return Ok(()) };
        let end = position.saturating_add(steps);
        let full = self.spec.layers.iter().map(|layer| &layer.attention);
        let full =
            full.filter(|attention| attention.window.is_none()).map(|attention| attention.cache.capacity);
        match full.min().unwrap_or(i32::MAX as usize) {
            capacity if end > capacity => Err(Error::invalid(
                "the end of a row",
                end,
                format!("at most the cache's capacity, {capacity}"),
            )),
            _ => Ok(()),
        }
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        // Steps that run use memory that is freed next.
        let _ = self.stream.synchronize();
    }
}

fn bucket(rows: usize) -> Result<usize> {
    BUCKETS
        .iter()
        .position(|&bucket| rows >= 1 && rows <= bucket)
        .ok_or_else(|| Error::invalid("the number of rows", rows, format!("1 to {MAX_ROWS}")))
}
