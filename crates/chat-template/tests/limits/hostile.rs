//! Templates that mean harm.

/// What never ends, or is larger than any limit: an error each.
pub(crate) fn endless() -> Vec<(&'static str, String)> {
    let loops = "{% for a in range(99999) %}".repeat(4) + &"{% endfor %}".repeat(4);
    let doubling =
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}";
    let shared = "{% set x = [1] %}".to_owned() + &"{% set x = [x, x] %}".repeat(90);
    let both = "{% set x = [1] %}{% set y = [1] %}".to_owned()
        + &"{% set x = [x, x] %}{% set y = [y, y] %}".repeat(90);
    let self_call = "{% macro m() %}{{ m() }}{% endmacro %}";
    vec![
        ("endless range", "{% for i in range(10**18) %}{% endfor %}".to_owned()),
        ("nested loops", loops),
        ("doubled text", doubling.to_owned()),
        ("doubled text by plus", doubling.replace('~', "+")),
        ("doubled list", doubling.replace("'ab'", "[1]").replace('~', "+")),
        ("doubling in a line", "{% set a = 'ab' %}".to_owned() + &"{% set a = a ~ a %}".repeat(60)),
        ("doubled by a macro", "{% set ns = namespace(x='ab') %}{% macro m() %}{{ ns.x }}{{ ns.x }}{% endmacro %}{% for i in range(99) %}{% set ns.x = m() %}{% endfor %}".to_owned()),
        ("doubled by replace", doubling.replace("ns.x ~ ns.x", "ns.x.replace('', ns.x)")),
        ("doubled by join", doubling.replace("ns.x ~ ns.x", "ns.x | join(ns.x)")),
        ("doubled by format", doubling.replace("ns.x ~ ns.x", "'{0}{0}'.format(ns.x)")),
        ("doubled by percent", doubling.replace("ns.x ~ ns.x", "'%s%s' % (ns.x, ns.x)")),
        ("doubled by capture", "{% set x = 'ab' %}".to_owned() + &"{% set x %}{{ x }}{{ x }}{% endset %}".repeat(60)),
        ("repeated text", "{{ 'a' * 10**12 }}".to_owned()),
        ("repeated list", "{{ ([0] * 10**12) | length }}".to_owned()),
        ("wide field", "{{ '%999999999999d' % 1 }}".to_owned()),
        ("wide fraction", "{{ '%.999999999999f' % 1 }}".to_owned()),
        ("wide padding", "{{ 'a'.ljust(10**12) }}".to_owned()),
        ("wide indent", "{{ 'a\nb' | indent(10**12) }}".to_owned()),
        ("wide json", "{{ [[[1]]] | tojson(indent='x' * 10**7) }}".to_owned()),
        ("endless macro", self_call.to_owned() + "{{ m() }}"),
        ("branching macro", "{% macro m(n) %}{{ m(n+1) }}{{ m(n+1) }}{% endmacro %}{{ m(0) }}".to_owned()),
        ("endless caller", "{% macro m() %}{{ caller() }}{% call m() %}{% endcall %}{% endmacro %}{% call m() %}{% endcall %}".to_owned()),
        ("endless loop()", "{% for x in [[1]] recursive %}{{ loop([x]) }}{% endfor %}".to_owned()),
        ("deep list", "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}".to_owned()),
        ("deep cycler", "{% set ns = namespace(x=1) %}{% for i in range(99999) %}{% set ns.x = cycler(ns.x) %}{% endfor %}".to_owned()),
        ("deep joiner", "{% set ns = namespace(x=1) %}{% for i in range(99999) %}{% set ns.x = joiner(ns.x) %}{% endfor %}".to_owned()),
        ("shared lists", shared.clone() + "{{ x }}"),
        ("shared lists compared", both.clone() + "{{ x == y }}"),
        ("shared lists watched", both.clone() + "{% for z in [1, 2] %}{{ loop.changed(x if loop.first else y, x, 'xxxx') }}{% endfor %}"),
        ("shared lists sorted", shared.clone() + "{{ [x, x] | sort | string }}"),
        ("shared lists in a list", both.clone() + "{{ [x].index(y) }}"),
        ("shared lists as json", shared + "{{ x | tojson }}"),
        ("shared keys", "{% set x = (1,) %}{% set y = (1,) %}".to_owned() + &"{% set x = (x, x) %}{% set y = (y, y) %}".repeat(90) + "{{ {x: 1, y: 2} }}"),
        ("sorted copies", "{{ (['ab' * 4000000] * 1000000) | sort | length }}".to_owned()),
        ("mapped copies", "{{ (['ab' * 4000000] * 100000) | map('upper') | list | length }}".to_owned()),
        ("nested map", "{{ 'a' | map(*(['map'] * 90000)) | list }}".to_owned()),
        ("deep brackets", format!("{{{{ {}{} }}}}", "[".repeat(100_000), "]".repeat(100_000))),
        ("deep parentheses", format!("{{{{ {}1{} }}}}", "(".repeat(100_000), ")".repeat(100_000))),
        ("deep signs", format!("{{{{ {}1 }}}}", "-".repeat(100_000))),
        ("deep nots", format!("{{{{ {}1 }}}}", "not ".repeat(60_000))),
        ("deep tests", format!("{{{{ 1{} }}}}", " is divisibleby (1".repeat(10_000))),
        ("deep calls", format!("{{{{ {}{} }}}}", "a(".repeat(100_000), ")".repeat(100_000))),
        ("deep targets", format!("{{% set {}a{} = 1 %}}", "(".repeat(100_000), ")".repeat(100_000))),
        ("deep blocks", "{% if 1 %}".repeat(20_000) + "{% endif %}"),
        ("deep macros", "{% macro m() %}".repeat(10_000)),
        ("long else", format!("{{{{ {} }}}}", "1 if 0 else ".repeat(20_000))),
        ("much output", format!("{{% for i in range(99999) %}}{}{{% endfor %}}", "x".repeat(100_000))),
        ("strange slice", "{{ 'abc'[::0] }}".to_owned()),
        ("large power", "{{ 9 ** (9 ** 9) }}".to_owned()),
        ("squared", "{% set ns = namespace(x=10) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}".to_owned()),
        ("long range of namespaces", "{% for i in range(99999) %}{% for j in range(99999) %}{% set a = namespace() %}{% endfor %}{% endfor %}".to_owned()),
        ("scopes that stay", "{% macro m() %}{{ caller() }}{% endmacro %}{% for i in range(99999) %}{% for j in range(99) %}{% call m() %}{% endcall %}{% endfor %}{% endfor %}".to_owned()),
        ("scopes in a chain", "{% set ns = namespace() %}{% macro m() %}{% macro n() %}{% set ns.m = m2 %}{% endmacro %}{% set m2 = n %}{{ n() }}{% endmacro %}{% set ns.m = m %}{% for i in range(99999) %}{% for j in range(99) %}{{ ns.m() }}{% endfor %}{% endfor %}".to_owned()),
        ("lorem", "{{ lipsum(n=10**9) }}".to_owned()),
        ("long lorem", "{{ lipsum(n=1, min=10**9, max=10**10) }}".to_owned()),
    ]
}

/// What takes long without a limit, and may or may not end with an error.
pub(crate) fn costly() -> Vec<(&'static str, String)> {
    let in_loop = |body: &str| {
        format!("{{% for i in range(99999) %}}{{% for j in range(99) %}}{body}{{% endfor %}}{{% endfor %}}")
    };
    let name = "q".repeat(200_000);
    let with = |set: &str, body: &str| format!("{set}{}", in_loop(body));
    let formats = (0..80).map(|at| format!("{{% set a{at} = strftime_now(f) %}}")).collect::<String>();
    let names: String = (0..6_000).map(|at| format!("{{% set v{at} = {at} %}}")).collect();
    vec![
        ("path of dots", "{% set n = 'a.' * 8000000 %}{{ range(100) | map(attribute=n ~ 'a', default=1) | list | length }}".to_owned()),
        ("long name by attr", "{% set n = 'a' * 16000000 %}{{ range(100000) | map('attr', n) | list | length }}".to_owned()),
        ("clock in a loop", with("{% set f = '%A' * 1000000 %}", "{% set a = strftime_now(f) %}")),
        ("wide clocks", format!("{{% set f = '%255Y' * 3000000 %}}{formats}")),
        ("wild clock", "{{ strftime_now('%999999999999Y' * 1000) }}{{ strftime_now('%' * 9999999) }}{{ strftime_now('%-:_^é') }}".to_owned()),
        ("long name", in_loop(&format!("{{% if {name} %}}{{% endif %}}"))),
        ("long attribute", with("{% set d = {} %}", &format!("{{% if d.{name} %}}{{% endif %}}"))),
        ("long key", with("{% set k = 'k' * 9000000 %}{% set d = {k: 1} %}{% set e = k ~ '' %}", "{{ d[e] }}")),
        ("long field", with("{% set k = 'k' * 9000000 %}{% set n = namespace(**{k: 1}) %}{% set e = k ~ '' %}", "{{ n[e] }}")),
        ("long keyword", with("{% set k = 'k' * 900000 %}", "{{ dict(**{k: 1}) }}")),
        ("long keyword of a macro", with("{% macro m(a) %}{{ kwargs }}{% endmacro %}{% set k = 'k' * 900000 %}", "{% set x = m(**{k: 1}) %}")),
        ("many arguments", with("{% macro m() %}{{ varargs | length }}{% endmacro %}{% set l = [1] * 100000 %}", "{{ m(*l) }}")),
        ("many keywords", "{% set ns = namespace(d={}) %}{% for i in range(3000) %}{% set ns.d = dict(ns.d, **{i | string: i}) %}{% endfor %}".to_owned()),
        ("long error", "{% set k = 'k' * 9000000 %}{{ d[k].x }}".to_owned()),
        ("long raise", "{{ raise_exception('\\n' * 9000000) }}".to_owned()),
        ("many names", format!("{names}{}", in_loop("{{ i }}{{ nothing }}"))),
        ("many names in a scope", format!("{{% with %}}{names}{}{{% endwith %}}", in_loop("{{ i }}{{ nothing }}"))),
        ("changed", with("{% set s = 'x' * 9000000 %}", "{{ loop.changed(s ~ '') }}")),
        ("panic by index", "{{ 'abc'.index('', 2, 1) }}".to_owned()),
        ("long strip", "{{ ('ab' * 4000000).strip('c' * 4000000 ~ 'ab') | length }}".to_owned()),
        ("long wordwrap", "{{ ('a' * 9000000) | wordwrap(1) | length }}{{ ('a-' * 900000) | wordwrap(3, false) | length }}".to_owned()),
        ("long unique", "{{ range(100000) | unique | list | length }}".to_owned()),
        ("long sort", "{{ range(100000) | sort(reverse=true) | list | length }}".to_owned()),
        ("sort by many", "{{ range(1000) | sort(attribute='a,' * 99999) | list | length }}".to_owned()),
        ("not-a-number sorted", "{% set n = 1e999 - 1e999 %}{{ ([n, 1.5, n, 0.5, 2] * 5000) | sort | length }}{{ [n, 1] | max }}".to_owned()),
        ("groups", "{{ range(100000) | groupby('x') | length }}{{ wide | groupby('name') | length }}".to_owned()),
        ("indices in a text", with("{% set s = 'é' * 4000000 %}", "{{ s[3999999] }}{{ s[-1:] }}")),
        ("characters", "{{ ('ab' * 4000000) | list | length }}".to_owned()),
        ("lines", "{{ ('\\n' * 9000000).splitlines() | length }}{{ ('\\n' * 9000000) | indent(9) | length }}".to_owned()),
        ("parts", "{{ ('a,' * 4000000).split(',') | length }}{{ ('a ' * 4000000).rsplit() | length }}".to_owned()),
        ("slices", "{{ range(99999) | slice(99999) | list | length }}{{ range(99999) | batch(99999, 1) | list | length }}{{ [1] | batch(10**12, 1) | list | length }}{{ [] | slice(10**12) | list | length }}".to_owned()),
        ("large integers", "{% set a = 10 ** 20000 %}{% for i in range(99999) %}{% set b = a * a // 7 %}{% endfor %}{{ a % 9 }}".to_owned()),
        ("large integers printed", in_loop("{% set x = 10 ** 4000 ~ '' %}")),
        ("large integers added", "{% set ns = namespace(x=2 ** 1000) %}{% for i in range(99999) %}{% set ns.x = ns.x + ns.x %}{% endfor %}".to_owned()),
        ("large integers divided", in_loop("{% set x = 10 ** 3000 / 3 ** 6000 %}{% set y = (10 ** 3000) % 3 ** 600 %}")),
        ("long digits", with("{% set s = '9' * 4000000 %}", "{{ s | int }}{{ s | float }}{{ ('1_' * 2000000 ~ '1') | int }}")),
        ("many captures", in_loop("{% set x %}{{ t }}{% endset %}")),
        ("filters of filters", with("{% set s = 'aB' * 100000 %}", "{% filter upper | lower | title | reverse | escape %}{{ s }}{% endfilter %}")),
        ("cyclers", with("{% set c = cycler(*range(100000)) %}", "{{ c.next() }}{{ c.items | length }}")),
        ("joiners", with("{% set j = joiner('x' * 100000) %}", "{{ j() }}")),
        ("large sum", "{{ [[1] * 1000] * 1000 | int }}{{ ([[1] * 1000] * 10000) | sum(start=[]) | length }}".to_owned()),
        ("percent fields", "{{ ('%s' * 1000000) % ((1,) * 1000000) | length }}{{ ('%(k)s' * 1000000) % d | length }}".to_owned()),
        ("brace fields", "{{ ('{}' * 100000).format(*range(100000)) | length }}{{ ('{0.a' * 1000000).format(1) }}{{ '{:{}}'.format(1, 10**9) }}".to_owned()),
        ("brace names", "{{ ('{k}' * 1000000).format(**d) | length }}{{ ('{' * 8000000).format() }}{{ ('{' ~ 'x' * 8000000 ~ '}').format() }}".to_owned()),
        ("long chain", format!("{{{{ {}1 }}}}", "1 + ".repeat(60_000))),
        ("long filter chain", format!("{{{{ 1{} }}}}", " | int".repeat(30_000))),
        ("long attribute chain", format!("{{{{ a{} }}}}", ".a".repeat(120_000))),
        ("long elif chain", format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 0 %}".repeat(20_000))),
        ("long and", format!("{{{{ {}1 }}}}", "1 and ".repeat(40_000))),
        ("long list", format!("{{{{ [{}] | length }}}}", "1,".repeat(120_000))),
        ("long dict", format!("{{{{ {{{}}} | length }}}}", (0..20_000).map(|at| format!("{at}:1,")).collect::<String>())),
        ("long if chain", format!("{{{{ 1{} }}}}", " if 1".repeat(40_000))),
        ("many macros", "{% macro m() %}{% endmacro %}{{ m() }}".repeat(6_000)),
        ("deep mixture", deep_mixture()),
        ("deep recursion", "{% macro m(n) %}{% if n %}{% for i in [1] %}{% with a = n %}{{ [[m(n - 1) ~ '']] | map('first') | list | join | upper }}{% endwith %}{% endfor %}{% endif %}{% endmacro %}{{ m(1000) }}".to_owned()),
        ("deep data", "{{ deep }}{{ deep | tojson(indent=1) | length }}{{ deep == [deep] }}{{ [deep, deep] | sort | length }}{% set ns = namespace(x=deep) %}{% for i in range(100) %}{% set ns.x = [ns.x] %}{% endfor %}".to_owned()),
        ("self-holding namespace", "{% set ns = namespace() %}{% set ns.x = [ns] %}{{ ns.x }}{% set ns.y = ns %}{{ ns == ns.y }}{{ ns.y.y.x | length }}".to_owned()),
        ("self-holding loop", "{% set ns = namespace() %}{% for i in [1, 2] %}{% set ns.l = loop %}{{ loop.changed(ns) }}{% endfor %}{{ ns.l.changed(ns.l) }}".to_owned()),
        ("loop after its end", "{% set ns = namespace() %}{% for i in [1] recursive %}{% set ns.l = loop %}{% endfor %}{{ ns.l([1]) }}".to_owned()),
        ("macro after its scope", "{% set ns = namespace() %}{% for i in [1] %}{% macro m() %}{{ i }}{% endmacro %}{% set ns.m = m %}{% endfor %}{% for j in [2] %}{{ ns.m() }}{% endfor %}".to_owned()),
        ("strange slices", "{{ [1,2,3][9**18:-9**18:-9**17] }}{{ 'abc'[-9**18:9**18:9**18] }}{{ l[9**99:] }}".to_owned()),
        ("strange numbers", "{{ -(-9223372036854775807 - 1) }}{{ (-9223372036854775807 - 1) // -1 }}{{ (-9223372036854775807 - 1) % -1 }}{{ 1e308 * 10 }}{{ (1e999 - 1e999) | tojson }}{{ 5 | round(9999) }}{{ 5 | round(-9999) }}{{ 5.5 | round(9999) }}{{ 5.5 | round(-9999) }}".to_owned()),
        ("strange texts", "{{ 'é'.center(7, 'ü') }}{{ 'é'[0:1] }}{{ '🙂'.find('') }}{{ 'é'.find('', 9) }}{{ 'é'.rindex('', -9, 9) }}{{ 'ß'.title() }}{{ 'é\\tü'.expandtabs(3) }}".to_owned()),
        ("strange formats", "{{ '%*d' % (9, 1) }}{{ '%.*f' % (70000, 1.5) | length }}{{ '{:.70000f}'.format(1.5) | length }}{{ '{:.70000e}'.format(1.5) | length }}{{ '{:.70000g}'.format(1.5) | length }}{{ '{:é>9}'.format(1) }}".to_owned()),
    ]
}

/// As deep as the parser allows, with an operator of each precedence at each level.
fn deep_mixture() -> String {
    let level = "1 or 1 and not 1 < 1 + 1 ~ 1 * 1 ** -1 | int(";
    (1..80).map(|depth| format!("{{{{ {}1{} }}}}", level.repeat(depth), ")".repeat(depth))).collect()
}

const FILTERS: &[&str] = &[
    "abs",
    "attr",
    "batch",
    "bool",
    "capitalize",
    "center",
    "count",
    "default",
    "dictsort",
    "escape",
    "filesizeformat",
    "first",
    "float",
    "forceescape",
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
    "pprint",
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
    "capitalize",
    "casefold",
    "center",
    "count",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isidentifier",
    "isprintable",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "upper",
    "zfill",
    "copy",
    "get",
    "items",
    "keys",
    "values",
];
const FUNCTIONS: &[&str] = &[
    "raise_exception",
    "strftime_now",
    "namespace",
    "range",
    "dict",
    "cycler",
    "joiner",
    "lipsum",
    "loop.cycle",
    "loop.changed",
];

/// Values of all kinds, most of them large.
const LARGE: &[&str] =
    &["big", "many", "table", "pairs", "deep", "10**17", "10**4000", "2.5", "none", "''", "'upper'", "t"];

pub(crate) fn everything_with_large_arguments() -> Vec<String> {
    let set = "{% set big = 'aB ,-\\n%{<é' * 200000 %}{% set many = range(100000) | list %}{% set table = dict(wide | map(attribute='id') | batch(2)) %}\
               {% set pairs = wide | map('items') | map('first') | list %}";
    let around = |call: &str| format!("{set}{{% for i in range(20) %}}{{% set x = {call} %}}{{% endfor %}}");
    let mut sources = Vec::new();
    for (at, name) in FILTERS.iter().enumerate() {
        let (value, a, b) =
            (LARGE[at % 5], LARGE[(at * 5 + 3) % LARGE.len()], LARGE[(at * 7 + 1) % LARGE.len()]);
        sources.push(around(&format!("{value} | {name}")));
        sources.push(around(&format!("big | {name}({a})")));
        sources.push(around(&format!("many | {name}({a}, {b})")));
    }
    for (at, name) in METHODS.iter().enumerate() {
        let (a, b) = (LARGE[(at * 5) % LARGE.len()], LARGE[(at * 7 + 1) % LARGE.len()]);
        sources.push(around(&format!("big.{name}()")));
        sources.push(around(&format!("big.{name}({a}, {b})")));
        sources.push(around(&format!("table.{name}({a})")));
    }
    for (at, name) in FUNCTIONS.iter().enumerate() {
        for offset in 0..4 {
            let a = LARGE[(at + offset) % LARGE.len()];
            sources.push(around(&format!("{name}({a})")));
        }
        sources.push(around(&format!("{name}(*many)")));
    }
    sources
}
