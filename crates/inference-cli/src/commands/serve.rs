//! `inference serve`: the HTTP APIs of OpenAI and Anthropic, and a page to talk to the model.

use std::{
    net::{IpAddr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use inference::{CancellationToken, hub::ModelName};
use inference_server::{ModelEntry, ModelLimits, Models, ServeOptions, Server, Settings, serve};

use crate::{
    failure::Usage,
    interrupt::Scope,
    model,
    options::{ByteSize, LoadArgs},
    render,
};

/// Serve models over HTTP: OpenAI's and Anthropic's APIs, and a page to talk to them
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  inference serve                                            the demo model on http://127.0.0.1:8080
  inference serve --model ~/models/Qwen3-0.6B --port 9000
  inference serve --model fast=~/models/Qwen3-0.6B --model large=~/models/Qwen3-8B --memory-budget 12GB
  inference serve --model base=~/models/Qwen3-0.6B --variant poet=~/adapters/poet    requests for base:poet
  curl http://127.0.0.1:8080/v1/chat/completions -H 'content-type: application/json' \\
    -d '{\"messages\": [{\"role\": \"user\", \"content\": \"What is 2+2?\"}]}'

The first model is loaded at once and answers requests that name none; further ones are loaded by the first request that names them. \
Clients see a model by its folder's name, or by NAME in NAME=PATH.")]
pub(crate) struct Args {
    /// A model's folder or its name on the Hugging Face Hub, or NAME=PATH; may be repeated [default: the demo model]
    #[arg(long, short, value_name = "[NAME=]PATH")]
    model: Vec<String>,

    /// A further name for a model, such as gpt-4o=Qwen3-8B; may be repeated
    #[arg(long, value_name = "ALIAS=NAME", help_heading = "Models")]
    alias: Vec<String>,

    /// Offer a model with a LoRA adapter as well, as MODEL:NAME; may be repeated. MODEL is the first one where it is left out. Each has
    /// weights of its own
    #[arg(long, value_name = "[MODEL:]NAME=PATH", help_heading = "Models")]
    variant: Vec<String>,

    /// Keep this model loaded when another one needs the memory; may be repeated
    #[arg(long, value_name = "NAME", help_heading = "Models")]
    pin: Vec<String>,

    /// Weights loaded at once; beyond it, models that were not used for longest are unloaded [default: no limit]
    #[arg(long, value_name = "SIZE", help_heading = "Models")]
    memory_budget: Option<ByteSize>,

    /// The address to listen on
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1", help_heading = "Server")]
    host: IpAddr,

    /// The port to listen on; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 8080, help_heading = "Server")]
    port: u16,

    /// A key that requests have to give; may be repeated, or be a list with commas in the variable
    #[arg(
        long,
        value_name = "KEY",
        env = "INFERENCE_API_KEY",
        hide_env_values = true,
        value_delimiter = ',',
        help_heading = "Server"
    )]
    api_key: Vec<String>,

    /// A site whose pages may call the server, such as https://example.org, or *; may be repeated [default: none]
    #[arg(long, value_name = "ORIGIN", help_heading = "Server")]
    cors_origin: Vec<String>,

    /// A name of this machine that requests may be sent to, besides localhost and IP addresses; may be repeated. Names are checked where
    /// the server listens on loopback without a key: another site's page could have its name lead here
    #[arg(long, value_name = "NAME", help_heading = "Server")]
    allowed_host: Vec<String>,

    /// Answers that run at once on one model; more wait
    #[arg(long, value_name = "ANSWERS", default_value_t = 64, value_parser = super::positive, help_heading = "Server")]
    max_running: usize,

    /// Requests that wait for one model; more are told to come back later
    #[arg(long, value_name = "REQUESTS", default_value_t = 256, help_heading = "Server")]
    max_waiting: usize,

    /// Seconds that a request may take, waiting included; 0 sets no limit
    #[arg(long, value_name = "SECONDS", default_value_t = 3600, help_heading = "Server")]
    timeout: u64,

    /// Tokens of one stream that come faster than this are sent together; 0 sends each as it comes
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(..=50), help_heading = "Server")]
    stream_interval: u64,

    /// Seconds that running requests have after Ctrl-C or SIGTERM
    #[arg(long, value_name = "SECONDS", default_value_t = 10, help_heading = "Server")]
    grace: u64,

    /// The certificate, in PEM; the server then speaks HTTPS
    #[arg(long, value_name = "FILE", requires = "tls_key", help_heading = "Server")]
    tls_cert: Option<PathBuf>,

    /// The certificate's key, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert", help_heading = "Server")]
    tls_key: Option<PathBuf>,

    /// Show no page at /
    #[arg(long, help_heading = "Server")]
    no_page: bool,

    #[command(flatten)]
    load: LoadArgs,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let scope = Scope::enter();
    let models = args.models(&scope.token())?;
    let address = SocketAddr::new(args.host, args.port);
    let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    let address = listener.local_addr()?;
    if !args.host.is_loopback() && args.api_key.iter().all(String::is_empty) {
        render::remark(&format!(
            "{address} can be reached from other machines, and no --api-key protects the server"
        ));
    }
    let options = args.serve_options()?;
    let server = Server::new(models.clone(), args.settings());
    let token = scope.token();
    let served = tokio::spawn(serve(server, listener, options, async move { token.cancelled().await }));
    for (name, loaded) in models.preload().await {
        if let Err(error) = loaded
            && !scope.interrupted()
        {
            // A server with nothing to serve is of no use; it ends as any command does whose model cannot be loaded.
            served.abort();
            return Err(anyhow::Error::new(error).context(format!("the model {name} cannot be loaded")));
        }
    }
    let scheme = if args.tls_cert.is_some() { "https" } else { "http" };
    render::tell(&format!("listening on {scheme}://{address}\n"));
    served.await??;
    Ok(ExitCode::SUCCESS)
}

impl Args {
    fn models(&self, cancel: &CancellationToken) -> anyhow::Result<Models> {
        let mut folders = Vec::new();
        for model in &self.model {
            folders.push(named(model)?);
        }
        if folders.is_empty() {
            folders.push(("demo".to_owned(), model::or_demo(None)?));
        }
        for (_, path) in &mut folders {
            *path = model::find(path)?;
        }
        let known = |name: &str| folders.iter().any(|(folder, _)| folder == name);
        let mut aliases = Vec::new();
        for alias in &self.alias {
            match alias.split_once('=') {
                Some((alias, name)) if known(name) && !alias.is_empty() => aliases.push((alias, name)),
                _ => {
                    let message = format!("--alias: {alias:?}, expected ALIAS=NAME with the name of a model");
                    return Err(Usage(message).into());
                }
            }
        }
        let entry = |(number, (name, path)): (usize, &(String, PathBuf))| {
            let options = self.load.options(cancel.child_token());
            let entry = ModelEntry::folder(name, path, self.load.backend.clone(), options);
            let entry = entry.pinned(self.pin.contains(name)).preload(number == 0);
            let own = aliases.iter().filter(|(_, model)| model == name);
            own.fold(entry, |entry, (alias, _)| entry.alias(*alias))
        };
        let mut entries: Vec<ModelEntry> = folders.iter().enumerate().map(entry).collect();
        for variant in &self.variant {
            let (name, path, adapter) = variant_of(variant, &folders)?;
            let options = self.load.options(cancel.child_token()).adapter(adapter);
            let entry = ModelEntry::folder(&name, path, self.load.backend.clone(), options);
            entries.push(entry.pinned(self.pin.contains(&name)));
        }
        if let Some(name) = self.pin.iter().find(|name| entries.iter().all(|entry| entry.name != **name)) {
            return Err(Usage(format!("--pin: there is no model {name:?}")).into());
        }
        let mut limits = ModelLimits::default();
        limits.memory_budget = self.memory_budget.map(|size| size.0);
        limits.max_running = self.max_running;
        limits.max_waiting = self.max_waiting;
        Models::new(entries, limits).map_err(|error| Usage(error.to_string()).into())
    }

    fn settings(&self) -> Settings {
        let timeout = (self.timeout > 0).then(|| Duration::from_secs(self.timeout));
        let settings = Settings::new().page(!self.no_page).request_timeout(timeout);
        let settings = settings.stream_interval(Duration::from_millis(self.stream_interval));
        let open = self.host.is_loopback() && self.api_key.iter().all(String::is_empty);
        let settings = match open || !self.allowed_host.is_empty() {
            true => settings.allowed_hosts(&self.allowed_host),
            false => settings,
        };
        let keys = self.api_key.iter().filter(|key| !key.is_empty());
        let settings = keys.fold(settings, Settings::api_key);
        self.cors_origin.iter().fold(settings, Settings::cors_origin)
    }

    fn serve_options(&self) -> anyhow::Result<ServeOptions> {
        let options = ServeOptions::new().grace(Duration::from_secs(self.grace));
        let (Some(certificate), Some(key)) = (&self.tls_cert, &self.tls_key) else { return Ok(options) };
        let read =
            |path: &Path| std::fs::read(path).with_context(|| format!("cannot read {}", render::path(path)));
        Ok(options.tls(read(certificate)?, read(key)?))
    }
}

/// The name and the folder of `NAME=PATH` or `PATH`.
fn named(model: &str) -> anyhow::Result<(String, PathBuf)> {
    if let Some((name, path)) = model.split_once('=').filter(|(name, _)| !name.contains(['/', '\\'])) {
        if name.is_empty() || path.is_empty() {
            return Err(Usage(format!("--model: {model:?}, expected PATH or NAME=PATH")).into());
        }
        return Ok((name.to_owned(), path.into()));
    }
    if !Path::new(model).exists() && model.parse::<ModelName>().is_ok() {
        return Ok((model.to_owned(), model.into()));
    }
    let path = PathBuf::from(model);
    // The folder's own name, also where the path is `.`.
    let real = path.canonicalize().unwrap_or_else(|_| path.clone());
    let name = real.file_name().map_or_else(|| model.to_owned(), |name| name.to_string_lossy().into_owned());
    Ok((name, path))
}

/// The name of `[MODEL:]NAME=PATH`, the folder of its model and that of its adapter.
fn variant_of(variant: &str, folders: &[(String, PathBuf)]) -> anyhow::Result<(String, PathBuf, PathBuf)> {
    let usage = |reason: &str| Usage(format!("--variant: {variant:?}, {reason}"));
    let (name, adapter) = variant
        .split_once('=')
        .filter(|(name, path)| !name.is_empty() && !path.is_empty())
        .ok_or_else(|| usage("expected [MODEL:]NAME=PATH with the folder of a LoRA adapter"))?;
    let (model, name) = match name.rsplit_once(':') {
        Some((model, name)) => (folders.iter().find(|(folder, _)| folder == model), name),
        None => (folders.first(), name),
    };
    let (model, path) = model.ok_or_else(|| usage("there is no such model"))?;
    Ok((format!("{model}:{name}"), path.clone(), adapter.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_called_as_its_folder_or_as_one_says() {
        let name = |text: &str| named(text).unwrap();
        assert_eq!(name("/nowhere/Qwen3"), ("Qwen3".to_owned(), "/nowhere/Qwen3".into()));
        assert_eq!(name("org/Qwen3"), ("org/Qwen3".to_owned(), "org/Qwen3".into()));
        assert_eq!(name("fast=/m/Qwen3"), ("fast".to_owned(), "/m/Qwen3".into()));
        assert_eq!(name("/a=b/c").0, "c");
        assert!(named("=x").is_err() && named("x=").is_err());
    }

    #[test]
    fn a_variant_belongs_to_a_model() {
        let folders = [("a".to_owned(), "/m/a".into()), ("org/b".to_owned(), "/m/b".into())];
        let variant = |text: &str| variant_of(text, &folders).unwrap();
        assert_eq!(variant("poet=/p"), ("a:poet".to_owned(), "/m/a".into(), "/p".into()));
        assert_eq!(variant("org/b:poet=/p"), ("org/b:poet".to_owned(), "/m/b".into(), "/p".into()));
        for wrong in ["poet", "=/p", "poet=", "c:poet=/p"] {
            assert!(variant_of(wrong, &folders).is_err(), "{wrong}");
        }
    }
}
