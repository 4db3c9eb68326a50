//! How the engine chooses, rightly or in one of many wrong ways.

use inference_conformance::sampler;
use inference_core::{Alternative, Result, SamplingOptions, Token};

use super::{
    language::{EOS, VOCAB, logits, mix, syllable},
    model::Run,
};

impl Run {
    pub(crate) fn choose(&mut self, step: usize) -> Result<Token> {
        let mask = self.mask()?;
        let mut logits = logits(&self.history, self.salt);
        let early = step < self.options.min_tokens.unwrap_or(0);
        if early && !self.fault.is("min_tokens_puts_the_end_off") {
            logits[EOS as usize] = f64::NEG_INFINITY;
        }
        let free = self.processed(logits)?;
        let log_probabilities = self.shaped(&free, mask.as_ref());
        let mut temperature = f64::from(self.options.sampling.temperature_or_greedy());
        if self.fault.is("temperature_zero_is_greedy") && self.options.sampling.temperature.is_some() {
            temperature = temperature.max(1.0);
        }
        let id = if temperature == 0.0 {
            self.likeliest(&log_probabilities)
        } else {
            self.draw(&log_probabilities, temperature, step)
        };
        let mut token = Token::new(id as u32, syllable(id as u32));
        if self.fault.is("unasked_they_are_absent") || self.options.log_probabilities.is_some() {
            let before = self.fault.is("log_probabilities_are_of_the_allowed");
            let mut reported = if before { free } else { log_probabilities };
            if self.fault.is("they_match_the_logits") {
                reported.iter_mut().for_each(|l| *l /= std::f64::consts::LN_2);
            }
            if self.fault.is("the_temperature_does_not_touch_them") && temperature > 0.0 {
                reported = sampler::temper(&reported, temperature).into_iter().map(f64::ln).collect();
            }
            self.report(&mut token, &reported);
        }
        self.tell(token.id)?;
        Ok(token)
    }

    fn report(&self, token: &mut Token, log_probabilities: &[f64]) {
        token.log_probability = Some(log_probabilities[token.id as usize] as f32);
        let mut order: Vec<usize> = (0..log_probabilities.len()).collect();
        order.sort_by(|a, b| log_probabilities[*b].total_cmp(&log_probabilities[*a]));
        order.truncate(self.options.log_probabilities.unwrap_or(0));
        if self.fault.is("they_are_consistent") {
            order.reverse();
        }
        let alternative = |id: usize| Alternative::new(id as u32, log_probabilities[id] as f32);
        token.top = order.into_iter().map(alternative).collect();
    }

    /// Bias, penalties and the caller's processor, then the log-softmax.
    fn processed(&self, mut logits: Vec<f64>) -> Result<Vec<f64>> {
        let mut options = self.options.sampling.clone();
        if self.fault.is("a_processor_has_the_last_word") {
            self.process(&mut logits)?;
        }
        if self.fault.is("a_bias_bans_and_forces") {
            options.logit_bias =
                options.logit_bias.map(|b| b.iter().filter(|b| b.1.is_finite()).copied().collect());
        }
        if self.fault.is("the_logit_bias_follows_its_formula") {
            options.logit_bias = options.logit_bias.map(|b| b.iter().map(|(id, b)| (*id, b / 2.0)).collect());
        }
        if self.fault.is("a_presence_penalty_forbids_repetition") {
            options.presence_penalty = None;
        }
        if self.fault.is("a_frequency_penalty_forbids_repetition") {
            options.frequency_penalty = None;
        }
        if self.fault.is("penalties_look_back_over_their_window") {
            options.penalty_window = options.penalty_window.map(|window| window + 1);
        }
        if self.fault.is("the_presence_penalty_follows_its_formula") {
            options.frequency_penalty = options.presence_penalty.take();
        }
        if self.fault.is("the_frequency_penalty_follows_its_formula") {
            options.presence_penalty = options.frequency_penalty.take();
        }
        if self.fault.is("the_repetition_penalty_follows_its_formula") {
            // Divides whatever the sign.
            let penalty = f64::from(options.repetition_penalty.take().unwrap_or(1.0));
            (0..VOCAB).filter(|id| self.history.contains(id)).for_each(|id| logits[id as usize] /= penalty);
        }
        sampler::bias(&mut logits, &options);
        sampler::penalise(&mut logits, &self.history, &options);
        if !self.fault.is("a_processor_has_the_last_word") {
            self.process(&mut logits)?;
        }
        Ok(sampler::log_softmax(&logits))
    }

    fn process(&self, logits: &mut [f64]) -> Result<()> {
        let Some(processor) = &self.options.logits_processor else { return Ok(()) };
        let (prompt, answer) = self.history.split_at(self.prompt);
        let prompt = if self.fault.is("a_processor_sees_logits_and_history") { &prompt[1..] } else { prompt };
        let mut edited: Vec<f32> = logits.iter().map(|x| *x as f32).collect();
        match processor.run(prompt, answer, &mut edited) {
            Err(_) if self.fault.is("a_processor_that_fails_ends_its_request_alone") => return Ok(()),
            result => result?,
        }
        logits.iter_mut().zip(edited).for_each(|(x, edited)| *x = f64::from(edited));
        Ok(())
    }

    fn draw(&self, log_probabilities: &[f64], mut temperature: f64, step: usize) -> usize {
        let mut options = self.options.sampling.clone();
        let seed = match options.seed {
            Some(_) if self.fault.is("seeds_differ") => 0,
            Some(seed) if self.fault.is("a_seed_reproduces_beside_others") => seed ^ self.unseeded << 7,
            Some(seed) if !self.fault.is("a_seed_reproduces") => seed,
            _ if self.fault.is("without_a_seed_draws_differ") => 0,
            _ => self.unseeded ^ self.started.elapsed().as_nanos() as u64,
        };
        let uniform = |n: u64| {
            let bits = mix(mix(mix(seed) ^ step as u64) ^ n) >> 11;
            bits as f64 / (1_u64 << 53) as f64
        };
        let mut acts = options.xtc.is_some_and(|xtc| uniform(1) < f64::from(xtc.probability));
        let mut kept = log_probabilities.to_vec();
        self.spoil(&mut options, &mut kept, &mut temperature, &mut acts);
        sampler::filter(&mut kept, &options, acts);
        let probabilities = sampler::temper(&kept, temperature);
        let mut u = uniform(2);
        let last = probabilities.iter().rposition(|p| *p > 0.0).unwrap_or(0);
        let drawn = probabilities.iter().position(|p| {
            u -= p;
            u < 0.0
        });
        drawn.unwrap_or(last)
    }

    /// The faults of samplers.
    fn spoil(&self, options: &mut SamplingOptions, kept: &mut [f64], temperature: &mut f64, acts: &mut bool) {
        if self.fault.is("draws_follow_the_temperature") {
            *temperature *= *temperature;
        }
        if self.fault.is("draws_follow_top_p") {
            // As transformers and llama.cpp have it: the temperature first.
            let tempered = sampler::temper(kept, *temperature);
            kept.iter_mut().zip(tempered).for_each(|(l, p)| *l = p.ln());
            *temperature = 1.0;
        }
        if self.fault.is("draws_follow_min_p")
            && let Some(p) = options.min_p.take()
        {
            // A share of certainty, not of the likeliest.
            kept.iter_mut().filter(|l| l.exp() < f64::from(p)).for_each(|l| *l = f64::NEG_INFINITY);
        }
        if self.fault.is("draws_follow_top_k") || self.fault.is("top_k_of_one_is_greedy") {
            options.top_k = options.top_k.map(|k| k + 1);
        }
        *acts |= self.fault.is("draws_follow_xtc");
    }
}
