use super::*;

fn record(input: Option<&str>) -> Record {
    Record::Instruction { instruction: "Add.".into(), input: input.map(String::from), output: "3".into() }
}

fn apart(template: Template, record: &Record) -> (String, String, bool) {
    match template.render(record, None, Loss::default()).unwrap() {
        Rendered::Apart { prompt, response, response_only } => (prompt, response, response_only),
        other => panic!("{other:?}"),
    }
}

#[test]
fn alpaca_with_and_without_input() {
    let preamble = "Below is an instruction that describes a task. Write a response that appropriately completes the \
                    request.\n\n### Instruction:\n";
    for template in [Template::Alpaca, Template::Auto] {
        let (prompt, response, response_only) = apart(template, &record(None));
        assert_eq!(prompt, format!("{preamble}Add.\n\n### Response:\n"));
        assert_eq!((response.as_str(), response_only), ("3", true));
        let (prompt, ..) = apart(template, &record(Some("1, 2")));
        assert_eq!(prompt, format!("{preamble}Add.\n\nInput: 1, 2\n\n### Response:\n"));
    }
}

#[test]
fn text_has_no_prompt_and_plain_adds_nothing() {
    let text = Record::Text { text: "x\n".into() };
    assert_eq!(apart(Template::Text, &text), ("".into(), "x\n".into(), true));
    let pair = Record::Completion { prompt: "a ".into(), completion: "b".into() };
    assert_eq!(apart(Template::Auto, &pair), ("a ".into(), "b".into(), true));
    let every = Loss { completion_only: Some(false), assistant_only: false };
    let rendered = Template::Plain.render(&pair, None, every).unwrap();
    assert!(matches!(rendered, Rendered::Apart { response_only: false, .. }));
}

#[test]
fn unknown_and_unsuited_templates_say_what_to_choose() {
    let e = "alpacca".parse::<Template>().unwrap_err();
    assert_eq!(
        e.to_string(),
        "unknown template `alpacca`; known are `auto`, `alpaca`, `plain`, `text`, `chat`"
    );
    for template in Template::ALL {
        assert_eq!(template.name().parse::<Template>().unwrap(), template);
    }
    let e = Template::Text.render(&record(None), None, Loss::default()).unwrap_err();
    assert_eq!(
        e.to_string(),
        "template `text` needs text, the data set has instruction and output; choose template `alpaca`"
    );
    let text = Record::Text { text: "x".into() };
    let e = Template::Chat.render(&text, None, Loss::default()).unwrap_err();
    assert!(e.to_string().contains("choose template `text`"), "{e}");
    let e = Template::Chat.render(&record(None), None, Loss::default()).unwrap_err();
    assert_eq!(e, TemplateError::NoChatTemplate);
    let loss = Loss { assistant_only: true, ..Loss::default() };
    let e = Template::Alpaca.render(&record(None), None, loss).unwrap_err();
    assert_eq!(e, TemplateError::NoAssistant { template: "alpaca" });
}
