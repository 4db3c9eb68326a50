//! Random templates from a grammar, with large values in them.

/// Makes one template of a seed.
pub(crate) struct Generator {
    state: u64,
    /// Names that were assigned so far.
    names: usize,
}

const FILTERS: &[&str] = &[
    "abs",
    "attr",
    "batch",
    "capitalize",
    "center",
    "count",
    "default",
    "dictsort",
    "escape",
    "filesizeformat",
    "first",
    "float",
    "format",
    "groupby",
    "indent",
    "int",
    "items",
    "join",
    "last",
    "length",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "random",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "slice",
    "sort",
    "string",
    "striptags",
    "sum",
    "title",
    "tojson",
    "trim",
    "truncate",
    "unique",
    "upper",
    "urlencode",
    "wordcount",
    "wordwrap",
];
const METHODS: &[&str] = &[
    "center",
    "count",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "index",
    "join",
    "ljust",
    "lower",
    "partition",
    "replace",
    "rsplit",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "title",
    "upper",
    "zfill",
    "get",
    "items",
    "keys",
    "values",
];
const TESTS: &[&str] = &[
    "defined",
    "none",
    "string",
    "odd",
    "divisibleby(3)",
    "in l",
    "eq(s)",
    "lower",
    "mapping",
    "sameas l",
    "gt 5",
];
const NAMED: &[&str] =
    &["attribute", "default", "width", "count", "indent", "reverse", "start", "d", "n", "x"];
const LEAVES: &[&str] = &[
    "s",
    "l",
    "d",
    "t",
    "deep",
    "wide",
    "messages",
    "tools",
    "nothing",
    "none",
    "true",
    "''",
    "'a.b.c'",
    "'upper'",
    "'%s {} é'",
    "'x' * 2000000",
    "'a b\\n' * 300000",
    "[1, 2] * 200000",
    "(1,) * 9",
    "range(99999)",
    "10**5",
    "-10**18",
    "2**5000",
    "1e300",
    "0",
    "1",
    "-1",
    "3",
    "{'a': 1, 'b': [2]}",
    "ns.x",
    "ns",
    "loop",
    "loop.index",
    "varargs",
    "dict(a=l)",
    "cycler(1, l)",
    "namespace(a=1)",
    "joiner('x')",
    "lipsum(n=9)",
    "strftime_now('%Y %A' * 999)",
];

impl Generator {
    pub(crate) fn new(seed: u64) -> Self {
        Self { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678, names: 0 }
    }

    fn below(&mut self, count: usize) -> usize {
        self.state =
            self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 33) as usize % count
    }

    fn pick(&mut self, from: &[&'static str]) -> &'static str {
        from[self.below(from.len())]
    }

    pub(crate) fn template(mut self) -> String {
        let mut source = "{% set ns = namespace(x='ab', y=[1]) %}".to_owned();
        for _ in 0..4 + self.below(8) {
            source += &self.statement(4);
        }
        source
    }

    fn body(&mut self, depth: usize) -> String {
        (0..1 + self.below(3)).map(|_| self.statement(depth)).collect()
    }

    fn statement(&mut self, depth: usize) -> String {
        let deeper = depth.saturating_sub(1);
        let kind = if depth == 0 { self.below(3) } else { self.below(10) };
        let value = self.expression(3);
        match kind {
            0 => format!("{{{{ {value} }}}}"),
            1 => {
                self.names += 1;
                format!("{{% set v{} = {value} %}}", self.names)
            }
            2 => format!("{{% set ns.x = {value} %}}"),
            3 | 4 => format!("{{% for i in {value} %}}{}{{% endfor %}}", self.body(deeper)),
            5 => format!(
                "{{% for i in range(9999) recursive %}}{}{{{{ loop([1]) }}}}{{% endfor %}}",
                self.body(deeper)
            ),
            6 => format!(
                "{{% if {value} %}}{}{{% else %}}{}{{% endif %}}",
                self.body(deeper),
                self.body(deeper)
            ),
            7 => format!(
                "{{% macro m(a, b={value}) %}}{}{{{{ m(a) }}}}{{% endmacro %}}{{{{ m(1) }}}}",
                self.body(deeper)
            ),
            8 => format!("{{% set v1 | {} %}}{}{{% endset %}}", self.pick(FILTERS), self.body(deeper)),
            _ => format!(
                "{{% macro c() %}}{{{{ caller() }}}}{{% endmacro %}}{{% call c() %}}{}{{% endcall %}}",
                self.body(deeper)
            ),
        }
    }

    fn arguments(&mut self, depth: usize) -> String {
        let mut given: Vec<String> = (0..self.below(3)).map(|_| self.expression(depth)).collect();
        if self.below(5) == 0 {
            given.push(format!("{}={}", self.pick(NAMED), self.expression(depth)));
        }
        if self.below(12) == 0 {
            given.push(format!("**{{{}: 1}}", self.expression(depth)));
        }
        given.join(", ")
    }

    fn expression(&mut self, depth: usize) -> String {
        let Some(deeper) = depth.checked_sub(1) else {
            return if self.names > 0 && self.below(3) == 0 {
                format!("v{}", 1 + self.below(self.names))
            } else {
                self.pick(LEAVES).to_owned()
            };
        };
        let value = self.expression(deeper);
        match self.below(14) {
            0..=3 => format!("({value}) | {}({})", self.pick(FILTERS), self.arguments(deeper)),
            4 | 5 => format!("({value}).{}({})", self.pick(METHODS), self.arguments(deeper)),
            6 => format!("({value}) is {}", self.pick(TESTS)),
            7 => format!("({value})[{}]", self.expression(deeper)),
            8 => format!("({value})[{}:{}:{}]", self.expression(0), self.expression(0), self.expression(0)),
            9 | 10 => {
                let op = self.pick(&["+", "-", "*", "/", "//", "%", "**", "~", "<", "==", "in", "and", "or"]);
                format!("({value}) {op} ({})", self.expression(deeper))
            }
            11 => format!("[{value}, {}]", self.expression(deeper)),
            12 => format!("{{({value},): {}, 's': {value}}}", self.expression(deeper)),
            _ => value,
        }
    }
}
