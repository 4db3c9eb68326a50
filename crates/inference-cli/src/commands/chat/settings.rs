//! How answers are generated and printed, and what changes it in a conversation.

use std::collections::BTreeMap;

use clap::{CommandFactory as _, Parser};
use inference::GenerateOptions;

use crate::{
    options::{GenerateArgs, LoadArgs, TemplateArgs},
    shape::ShapeArgs,
};

/// The setting that gives the chat template a variable.
const VARIABLE: &str = "var";

/// How answers are generated and printed.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) options: GenerateOptions,
    pub(super) json: bool,
    pub(super) quiet: bool,
    /// How further models are loaded.
    pub(super) load: LoadArgs,
    /// What the program was started with.
    generate: GenerateArgs,
    shape: ShapeArgs,
    template: TemplateArgs,
    /// What was set since, by name.
    set: BTreeMap<String, String>,
}

/// The settings as the command line has them, whose rules they follow.
#[derive(Debug, Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
struct Line {
    #[command(flatten)]
    generate: GenerateArgs,
    #[command(flatten)]
    shape: ShapeArgs,
    #[arg(long, hide = true)]
    json: bool,
}

impl Settings {
    /// # Errors
    /// An option makes no sense, or a file of tools or of a shape cannot be read.
    pub(super) fn new(
        (generate, shape, template): (GenerateArgs, ShapeArgs, TemplateArgs),
        load: LoadArgs,
        (json, quiet): (bool, bool),
    ) -> anyhow::Result<Self> {
        let options = shape.apply(template.apply(generate.options(Default::default()))?)?;
        options.validate()?;
        Ok(Self { options, json, quiet, load, generate, shape, template, set: BTreeMap::new() })
    }

    /// The settings, each with what was set.
    pub(super) fn list(&self) -> String {
        let value = |name: &str| self.set.get(name).map_or("", String::as_str);
        let variables = self.set.iter().filter(|(name, _)| name.starts_with(VARIABLE));
        let variables = variables.map(|(_, value)| format!("{VARIABLE} {value}"));
        let lines = names().into_iter().map(|name| format!("{name} {}", value(&name)).trim_end().to_owned());
        lines.chain(variables).chain([format!("{VARIABLE} NAME=VALUE")]).collect::<Vec<_>>().join("\n")
    }

    /// Changes a setting. Nothing changes where that fails.
    ///
    /// # Errors
    /// There is no such setting, or the value makes no sense: why.
    pub(super) fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let name = name.replace('_', "-");
        let mut set = self.set.clone();
        let key = match (name.as_str(), value.split_once('=')) {
            (VARIABLE, Some((variable, _))) => format!("{VARIABLE} {variable}"),
            (VARIABLE, None) => {
                return Err("expected a variable and its value: /set var enable_thinking=false".to_owned());
            }
            _ if names().contains(&name) => name,
            _ => return Err(format!("there is no setting {name}; /set lists them")),
        };
        if value.ends_with("default")
            && (value == "default" || key.starts_with(VARIABLE) && value.ends_with("=default"))
        {
            set.remove(&key);
        } else {
            if ShapeArgs::NAMES.contains(&key.as_str()) {
                // An answer has one shape.
                set.retain(|name, _| !ShapeArgs::NAMES.contains(&name.as_str()));
            }
            set.insert(key, value.to_owned());
        }
        let options = self.options_with(&set)?;
        options.validate().map_err(|error| error.to_string())?;
        (self.options, self.set) = (options, set);
        Ok(())
    }

    /// The options that the program was started with, and these settings.
    fn options_with(&self, set: &BTreeMap<String, String>) -> Result<GenerateOptions, String> {
        let reshaped = ShapeArgs::NAMES.iter().any(|name| set.contains_key(*name));
        let shape = if reshaped { ShapeArgs::default() } else { self.shape.clone() };
        let mut line = Line { generate: self.generate.clone(), shape, json: true };
        let (variables, settings): (Vec<_>, Vec<_>) =
            set.iter().partition(|(name, _)| name.starts_with(VARIABLE));
        let arguments = settings.into_iter().map(|(name, value)| match value.as_str() {
            "" => format!("--{name}"),
            value => format!("--{name}={value}"),
        });
        line.try_update_from(arguments).map_err(|error| {
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default();
            first.strip_prefix("error: ").unwrap_or(first).to_owned()
        })?;
        // A flag that is not repeated would be taken back.
        line.generate.ignore_eos |= self.generate.ignore_eos;
        let mut template = self.template.clone();
        for (_, value) in variables {
            template.add_variable(value)?;
        }
        let options = template.apply(line.generate.options(Default::default()));
        options.and_then(|options| line.shape.apply(options)).map_err(|error| format!("{error:#}"))
    }
}

/// The names of the settings.
fn names() -> Vec<String> {
    let command = Line::command();
    let names = command.get_arguments().filter(|argument| !argument.is_hide_set());
    names.filter_map(|argument| argument.get_long().map(str::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    use inference::Constraint;

    use super::*;

    fn settings() -> Settings {
        let line = Line::try_parse_from(["--temperature=0.5", "--stop=a"]).unwrap();
        let args = (line.generate, line.shape, TemplateArgs::default());
        Settings::new(args, LoadArgs::default(), (false, false)).unwrap()
    }

    #[test]
    fn a_setting_is_changed_and_undone() {
        let mut settings = settings();
        settings.set("temperature", "1.5").unwrap();
        settings.set("top_k", "7").unwrap();
        settings.set("stop", "b c").unwrap();
        settings.set("ignore-eos", "").unwrap();
        let sampling = &settings.options.sampling;
        assert_eq!(
            (sampling.temperature, sampling.top_k, settings.options.ignore_eos),
            (Some(1.5), Some(7), true)
        );
        assert_eq!(settings.options.stop.as_deref(), Some(&["b c".to_owned()][..]));
        assert!(
            settings.list().contains("temperature 1.5\n") && settings.list().contains("\nmin-p\n"),
            "{}",
            settings.list()
        );
        settings.set("temperature", "default").unwrap();
        settings.set("stop", "default").unwrap();
        assert_eq!(settings.options.sampling.temperature, Some(0.5));
        assert_eq!(settings.options.stop.as_deref(), Some(&["a".to_owned()][..]));
        settings.set("var", "enable_thinking=false").unwrap();
        let variable = |settings: &Settings| {
            settings.options.template.variables.as_ref()?.get("enable_thinking").cloned()
        };
        assert_eq!(variable(&settings), Some(false.into()));
        settings.set("var", "enable_thinking=default").unwrap();
        assert_eq!(variable(&settings), None);
    }

    #[test]
    fn an_answer_has_one_shape() {
        let line = Line::try_parse_from(["--regex=a+"]).unwrap();
        let args = (line.generate, line.shape, TemplateArgs::default());
        let mut settings = Settings::new(args, LoadArgs::default(), (false, false)).unwrap();
        let shape = |settings: &Settings| format!("{:?}", settings.options.constraint);
        assert_eq!(shape(&settings), format!("{:?}", Some(Constraint::regex("a+"))));
        settings.set("choice", "yes").unwrap();
        assert_eq!(shape(&settings), format!("{:?}", Some(Constraint::choice(["yes"]))));
        settings.set("regex", "b").unwrap();
        assert_eq!(shape(&settings), format!("{:?}", Some(Constraint::regex("b"))));
        assert!(settings.set("json-schema", "/no/such/file").unwrap_err().contains("/no/such/file"));
        settings.set("regex", "default").unwrap();
        assert_eq!(shape(&settings), format!("{:?}", Some(Constraint::regex("a+"))));
    }

    #[test]
    fn what_makes_no_sense_changes_nothing() {
        let mut settings = settings();
        assert!(settings.set("temprature", "1").unwrap_err().contains("no setting temprature"));
        assert!(settings.set("temperature", "hot").unwrap_err().contains("'hot'"));
        assert!(settings.set("top-p", "7").is_err() && settings.set("json", "").is_err());
        assert!(settings.set("temperature", "").unwrap_err().contains("value is required"));
        assert_eq!(
            (settings.options.sampling.temperature, settings.options.sampling.top_p),
            (Some(0.5), None)
        );
    }
}
