use serde_json::json;

use super::*;

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, "T", Map::new()).unwrap()
}

/// What a template makes of variables, where messages do not matter.
fn rendered(source: &str, variables: serde_json::Value) -> Result<String, ChatError> {
    let serde_json::Value::Object(variables) = variables else { panic!("variables are an object") };
    Ok(ChatTemplate::new(source, "T", variables)?.render(&[], None, false)?.text)
}

fn text(source: &str, variables: serde_json::Value) -> String {
    rendered(source, variables).unwrap()
}

fn conversation(turns: &[(&str, &str)]) -> Conversation {
    let messages = turns.iter().map(|(role, content)| Message::new(role, content)).collect();
    Conversation { messages, tools: None, prompt: None }
}

#[test]
fn values_print_as_in_python() {
    let v = json!({"v": {"a": [1, 2.0, true, null, "it's", "q\"", "both'\"", "\n\u{1}"], "b": {}, "c": 1e30, "d": 1e-7}});
    assert_eq!(
        text("{{ v }}|{{ v.a[3] }}|{{ v.a[2] }}|{{ missing }}|{{ v.c }}", v),
        r#"{'a': [1, 2.0, True, None, "it's", 'q"', 'both\'"', '\n\x01'], 'b': {}, 'c': 1e+30, 'd': 1e-07}|None|True||1e+30"#
    );
}

#[test]
fn tojson_is_json_dumps() {
    let v = json!({"v": {"z": "<a> & 'b' \"c\" é 🧀", "a": [1, 2.5, []], "n": null}});
    assert_eq!(
        text("{{ v | tojson }}", v.clone()),
        r#"{"z": "<a> & 'b' \"c\" é 🧀", "a": [1, 2.5, []], "n": null}"#
    );
    assert_eq!(
        text("{{ v | tojson(indent=2) }}", v.clone()),
        "{\n  \"z\": \"<a> & 'b' \\\"c\\\" é 🧀\",\n  \"a\": [\n    1,\n    2.5,\n    []\n  ],\n  \"n\": null\n}"
    );
    assert_eq!(
        text("{{ v | tojson(separators=(',', ':'), sort_keys=true, ensure_ascii=true) }}", v.clone()),
        r#"{"a":[1,2.5,[]],"n":null,"z":"<a> & 'b' \"c\" \u00e9 \ud83e\uddc0"}"#
    );
    let e = rendered("{{ v | tojson(ident=2) }}", v).unwrap_err();
    assert!(e.to_string().contains("ident"), "{e}");
}

#[test]
fn methods_and_tests_are_pythons() {
    let v = json!({"s": "  x=y=z\n", "m": {"k": 1}, "n": null});
    for (source, expected) in [
        ("{{ s.strip().split('=')[-1] }}", "z"),
        ("{{ 'abab'.replace('a', 'c') }}{{ 'x'.upper() }}", "cbcbX"),
        ("{{ 'a-b'.removeprefix('a').removesuffix('b') }}", "-"),
        ("{% for k, v in m.items() %}{{ k }}{{ v }}{% endfor %}{{ m.get('q', 7) }}", "k17"),
        ("{{ s is iterable }}{{ n is iterable }}{{ missing is iterable }}", "TrueFalseTrue"),
        (
            "{{ s is sequence }}{{ m is sequence }}{{ n is sequence }}{{ 1 is sequence }}",
            "TrueTrueFalseFalse",
        ),
        (
            "{% for i in [1, 2, 3, 4] %}{% if i == 2 %}{% continue %}{% elif i == 4 %}{% break %}{% endif %}{{ i }}{% endfor %}",
            "13",
        ),
        ("{{ [1, 2, 3][::-1] }}", "[3, 2, 1]"),
        (
            "{% set ns = namespace(n=0) %}{% for i in [1, 2] %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}",
            "3",
        ),
    ] {
        assert_eq!(text(source, v.clone()), expected, "{source}");
    }
}

#[test]
fn blocks_are_trimmed_and_line_ends_are_jinjas() {
    let source = "{% if true %}\n  a\n    {% if true %}\n  b\n    {% endif %}\n{% endif %}\nend\n";
    for ends in ["\n", "\r\n", "\r"] {
        assert_eq!(text(&source.replace('\n', ends), json!({})), "  a\n  b\nend", "{ends:?}");
    }
    assert_eq!(text("{{ 'kept\\r\\n' }}", json!({})), "kept\r\n");
}

#[test]
fn special_tokens_and_settings_are_variables() {
    let source = "{{ bos_token }}{% if thinking is defined and not thinking %}/off{% endif %}";
    assert_eq!(text(source, json!({"bos_token": "<s>"})), "<s>");
    assert_eq!(text(source, json!({"bos_token": "<s>", "thinking": false})), "<s>/off");
}

#[test]
fn the_day_is_today_or_one_of_choice() {
    let dated = template("{{ strftime_now('%d %b %Y') }}");
    assert!(dated.is_dated() && !template("x").is_dated());
    let dated = dated.on(jiff::civil::date(2024, 7, 26).at(0, 0, 0, 0));
    assert_eq!(dated.render(&[], None, false).unwrap().text, "26 Jul 2024");
    let e = rendered("{{ strftime_now('%!') }}", json!({})).unwrap_err();
    assert!(matches!(&e, ChatError::Render { line: 1, what, .. } if what.starts_with("strftime_now")), "{e}");
}

#[test]
fn what_fails_is_told_with_its_line() {
    let e = rendered("a\n{{ raise_exception('roles must alternate') }}", json!({})).unwrap_err();
    assert_eq!(
        e.to_string(),
        "chat template T, line 2: roles must alternate; change the conversation to what the template accepts"
    );
    let e = rendered("a\n\n{% if %}", json!({})).unwrap_err();
    assert!(matches!(&e, ChatError::Syntax { line: 3, .. }), "{e}");
    let e = rendered("{% é %}", json!({})).unwrap_err();
    assert!(matches!(&e, ChatError::Syntax { line: 1, .. }), "{e}");
    let e = rendered("{{ 'a' + missing }}", json!({})).unwrap_err();
    assert!(matches!(&e, ChatError::Render { line: 1, .. }), "{e}");
    let e = rendered("{{ x | no_such_filter }}", json!({})).unwrap_err();
    assert!(e.to_string().contains("no_such_filter"), "{e}");
}

#[test]
fn a_template_without_end_is_stopped() {
    let source = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}\
                  {% endfor %}";
    let e = rendered(source, json!({})).unwrap_err();
    assert!(matches!(e, ChatError::Endless { .. }), "{e}");
    let e = rendered("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", json!({})).unwrap_err();
    assert!(matches!(e, ChatError::Endless { .. } | ChatError::Render { .. }), "{e}");
}

/// A short template can ask for more text than there is memory, by strings that double or by lists that hold themselves twice.
#[test]
fn a_template_of_endless_text_is_stopped_before_it_takes_the_memory() {
    let doubled = |step: &str, last: &str| {
        format!(
            "{{% set ns = namespace(x='ab') %}}{{% for i in range(60) %}}{{% set ns.x = {step} %}}{{% endfor %}}{{{{ {last} }}}}"
        )
    };
    for step in
        ["ns.x ~ ns.x", "ns.x + ns.x", "ns.x * 2", "ns.x.replace('b', 'bb')", "ns.x | replace('b', 'bb')"]
    {
        let e = rendered(&doubled(step, "ns.x | length"), json!({})).unwrap_err();
        assert!(matches!(e, ChatError::Endless { .. }), "{step}: {e}");
    }
    for last in ["ns.x", "ns.x | string", "ns.x | tojson", "''.join([ns.x])", "'{}'.format(ns.x)"] {
        let e = rendered(&doubled("[ns.x, ns.x]", last), json!({})).unwrap_err();
        assert!(matches!(e, ChatError::Endless { .. }), "{last}: {e}");
    }
    // What the engine writes, adds or compares by itself goes through the whole value before it pays.
    for (step, last) in [
        ("[ns.x, ns.x]", "ns.x ~ ''"),
        ("ns.x + ns.x", "ns.x | upper"),
        ("{'a': ns.x, 'b': ns.x}", "ns.x == 1"),
        ("[ns.x] * 1000", "'x' is in ns.x"),
    ] {
        let source = doubled(step, last).replace("x='ab'", "x=['ab']");
        let e = rendered(&source, json!({})).unwrap_err();
        assert!(matches!(e, ChatError::Endless { .. }), "{step}, {last}: {e}");
    }
    let by_macros = "{% macro m(x, n) %}{% if n %}{{ m([x, x], n - 1) }}{% else %}{{ x ~ '' }}{% endif %}{% endmacro %}{{ m('a', 30) }}";
    for source in [by_macros, "{{ ([[0] * 90000000] * 90000000) | upper }}"] {
        let e = rendered(source, json!({})).unwrap_err();
        assert!(matches!(e, ChatError::Endless { .. } | ChatError::Render { .. }), "{source}: {e}");
    }
    let e = rendered("{{ range(50000) | list | tojson(indent='x' * 50000) }}", json!({})).unwrap_err();
    assert!(matches!(e, ChatError::Endless { .. }), "{e}");
    let deep = "{% set ns = namespace(x=1) %}{% for i in range(300) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | tojson }}";
    let e = rendered(deep, json!({})).unwrap_err();
    assert!(e.to_string().contains("in one another"), "{e}");
    let e = rendered("{{ [1] | tojson(separators=[' ' * 65, '']) }}", json!({})).unwrap_err();
    assert!(e.to_string().contains("64 bytes"), "{e}");
}

const TAGGED: &str = "{% for m in messages %}{% if m.role == 'assistant' %}A:{%- generation -%} {{ m.content }}; {%- endgeneration %}\
                      {% else %}U:{{ m.content }};{% endif %}{% endfor %}";

#[test]
fn tags_mark_what_the_assistant_says() {
    let tagged = template(TAGGED);
    assert!(tagged.has_generation_tags());
    let c = conversation(&[("user", "é"), ("assistant", "ü"), ("user", "b"), ("assistant", "")]);
    let (text, spans) = tagged.assistant_spans(&c).unwrap();
    assert_eq!(text, "U:é;A:ü;U:b;A:;");
    let said: Vec<_> = spans.iter().map(|span| &text[span.clone()]).collect();
    assert_eq!(said, ["ü;", ";"]);
    let e = tagged.assistant_spans(&conversation(&[("user", "a\u{fdd0}b")])).unwrap_err();
    assert_eq!(e, ChatError::Reserved);
    // Text that is not a tag stays.
    let plain = template(
        "{# {% generation %} #}{% raw %}{% generation %}{%- endraw -%}{{ '{% generation %}' }}{{ '}}{% generation %}' }}{é{%- set x = 'é' -%}",
    );
    assert_eq!(
        plain.render(&[], None, false).unwrap().text,
        "{% generation %}{% generation %}}}{% generation %}{é"
    );
    assert!(!plain.has_generation_tags());
}

#[test]
fn without_tags_turns_are_told_apart_by_what_comes_before() {
    let plain = template(
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}",
    );
    let c = conversation(&[("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]);
    let (text, spans) = plain.assistant_spans(&c).unwrap();
    let said: Vec<_> = spans.iter().map(|span| &text[span.clone()]).collect();
    assert_eq!(said, ["b", "d"]);
    let (text, span) = plain.completion_span(&c, 1).unwrap();
    assert_eq!(&text[span], "b[user]c[assistant]d");

    let last_only = template(
        "{% for m in messages %}[{{ m.role }}{% if loop.last %} last{% endif %}]{{ m.content }}{% endfor %}",
    );
    let e = last_only.assistant_spans(&c).unwrap_err();
    assert_eq!(e, ChatError::NotAPrefix { name: "T".into(), turn: 2 });
    let e = last_only.completion_span(&c, 1).unwrap_err();
    assert_eq!(e, ChatError::NotAPrefix { name: "T".into(), turn: 1 });
}

#[test]
fn templates_are_found_beside_the_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    let found = |config: serde_json::Value| find(dir.path(), &config).unwrap().map(|(text, _)| text);
    assert_eq!(found(json!({})), None);
    assert_eq!(found(json!({"chat_template": "a"})).as_deref(), Some("a"));
    let several = json!([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]);
    assert_eq!(found(json!({"chat_template": several})).as_deref(), Some("d"));
    std::fs::write(dir.path().join("chat_template.jinja"), "file").unwrap();
    assert_eq!(found(json!({"chat_template": "a"})).as_deref(), Some("file"));
    std::fs::write(dir.path().join("chat_template.jinja"), b"\xff").unwrap();
    assert!(matches!(find(dir.path(), &json!({})), Err(ChatError::Io { .. })));
}

/// Every kind of jump has to find its place again behind the checks that are put in.
#[test]
fn what_bounds_a_template_changes_nothing_else() {
    let source = "{% macro m(a, b='-') %}{% set c = a * 2 %}{{ c }}{{ b }}{% endmacro %}\
                  {% set ns = namespace(n=0, all=[]) %}\
                  {% for i in range(4) if i != 2 %}{% set ns.n = ns.n + i %}{% set ns.all = ns.all + [i * 3] %}\
                  {{ m(i, b='+') if i % 2 else m('ab') }}{% if i == 9 %}x{% elif loop.last %}!{% else %},{% endif %}{% else %}none\
                  {% endfor %}{% for i in [] %}{% else %}none{% endfor %}\
                  {% for k, v in {'a': 1}.items() recursive %}{{ k }}{{ v }}{% endfor %}\
                  {% set b %}in {{ ns.n }}{% endset %}{% with d = 2 * 3 %}{{ d and b or 'x' }}{% endwith %}\
                  {% for i in range(9) %}{% if i == 1 %}{% continue %}{% elif i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}{{ ns.all }}";
    assert_eq!(text(source, json!({})), "abab-,2+,6+!nonea1in 402[0, 3, 9]");
    // Programs beyond those that are kept.
    for i in 0..80 {
        assert_eq!(text(&format!("{{% set a = {i} %}}{{{{ a * 2 }}}}"), json!({})), (2 * i).to_string());
    }
    let e = rendered("{% set a = 1 %}\n{% set b = a * 2 %}\n\n{{ b.c.d }}", json!({})).unwrap_err();
    assert!(matches!(&e, ChatError::Render { line: 4, .. }), "{e}");
}
