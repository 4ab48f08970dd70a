//! Shapes of records, and settings that name their keys.

use chronibench_protocol::data::Columns;

use super::*;

/// Name of the format recognised, and the first record.
fn recognised(record: Value) -> (&'static str, Record) {
    let file = File::new("d.jsonl", record.to_string());
    let mut found = Records::open(&file.path, &ReadArgs::default()).unwrap();
    (found.format().name, found.next().unwrap().unwrap().record)
}

#[test]
fn messages_keep_whatever_a_template_may_read() {
    let messages = json!([
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u", "name": "Ann"},
        {"role": "assistant", "content": null, "tool_calls": [
            {"type": "function", "function": {"name": "f", "arguments": "{\"x\": [1]}"}},
            {"name": "g", "arguments": {"y": 2}}
        ]},
        {"role": "tool", "content": "42", "tool_call_id": null},
        {"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    ]);
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    let (name, record) = recognised(json!({"messages": messages, "tools": tools, "id": 3}));
    assert_eq!(name, "messages");
    let mut expected = messages.clone();
    expected[2]["tool_calls"][0]["function"]["arguments"] = json!({"x": [1]});
    expected[3].as_object_mut().unwrap().remove("tool_call_id");
    expected[4]["content"] = json!("ab");
    assert_eq!(turns(&record), expected);
    assert_eq!(json!(conversation(&record).tools), tools);
    // Tables have lists and schemas as text.
    let text = json!({"messages": messages.to_string(), "tools": json!([tools[0].to_string()]).to_string()});
    assert_eq!(recognised(text), (name, record));
}

#[test]
fn sharegpt_becomes_roles() {
    let said = |from: &str| json!({"from": from, "value": from});
    let said = ["human", "gpt", "user", "assistant", "observation", "chatgpt"].map(said);
    let (name, record) = recognised(json!({"system": "Be kind.", "conversations": said}));
    let roles: Vec<_> = conversation(&record).messages.iter().map(|m| m.role()).collect();
    assert_eq!(name, "sharegpt");
    assert_eq!(roles, ["system", "user", "assistant", "user", "assistant", "tool", "assistant"]);
    assert_eq!(turns(&record)[1], json!({"role": "user", "content": "human"}));
    // Either kind of turn stands under either key.
    let mixed = json!({"conversations": [{"role": "user", "content": "a"}]});
    assert_eq!(turns(&recognised(mixed).1), json!([{"role": "user", "content": "a"}]));
    let mixed = json!({"messages": [{"from": "human", "value": "a"}], "conversations": [{"from": "gpt", "value": "b"}]});
    let (name, record) = recognised(mixed);
    assert_eq!((name, turns(&record)), ("sharegpt", json!([{"role": "assistant", "content": "b"}])));
}

#[test]
fn prompt_and_completion_are_texts_or_turns() {
    let (name, record) = recognised(json!({"prompt": "p", "response": "r"}));
    assert_eq!(name, "prompt_completion");
    assert_eq!(record, Record::Completion { prompt: "p".into(), completion: "r".into() });
    // A text that begins as a list does is a text.
    let (_, record) = recognised(json!({"prompt": "[x", "completion": "[1"}));
    assert_eq!(record, Record::Completion { prompt: "[x".into(), completion: "[1".into() });
    // And so is one that is a list, but none of turns.
    for (prompt, completion) in [("[3, 1, 2]", "[1, 2, 3]"), ("sort", "[]"), ("[\"a\", {}]", "[[1], [2]]")] {
        let (_, record) = recognised(json!({"prompt": prompt, "completion": completion}));
        assert_eq!(record, Record::Completion { prompt: prompt.into(), completion: completion.into() });
    }
    let (user, assistant) =
        (json!({"role": "user", "content": "u"}), json!({"role": "assistant", "content": "a"}));
    let texts = [&user, &assistant].map(|turn| json!([turn]).to_string());
    let (_, record) = recognised(json!({"prompt": texts[0], "completion": texts[1]}));
    assert_eq!(turns(&record), json!([user, assistant]));
    let (name, record) = recognised(json!({"prompt": [user], "completion": [assistant]}));
    assert_eq!((name, turns(&record)), ("prompt_completion", json!([user, assistant])));
    assert_eq!(conversation(&record).prompt, Some(1));
}

#[test]
fn a_format_that_is_named_is_taken() {
    let record = json!({"messages": [{"role": "user", "content": "u"}], "prompt": "p", "completion": "c", "text": "t"});
    let file = File::new("d.jsonl", record.to_string());
    let named = |format: &str| {
        let args = ReadArgs { format: Some(format.into()), ..Default::default() };
        read(&file.path, &args).map(|mut records| records.remove(0))
    };
    assert!(matches!(named("messages").unwrap(), Record::Conversation(_)));
    assert_eq!(named("text").unwrap(), Record::Text { text: "t".into() });
    assert!(matches!(named("prompt_completion").unwrap(), Record::Completion { .. }));
    assert!(named("alpaca").unwrap_err().to_string().contains("\"instruction\" is missing"));
    assert_eq!(
        named("chatml").unwrap_err().to_string(),
        "unknown format `chatml`; known are `messages`, `sharegpt`, `prompt_completion`, `alpaca`, `text`"
    );
}

#[test]
fn columns_name_other_keys() {
    let with = |columns: Columns, record: Value| {
        let file = File::new("d.jsonl", record.to_string());
        read(&file.path, &ReadArgs { format: None, columns }).map(|mut records| records.remove(0))
    };
    let columns =
        Columns { prompt: Some("question".into()), completion: Some("answer".into()), ..Default::default() };
    let record = with(columns.clone(), json!({"question": "q", "answer": "a", "prompt": "other"})).unwrap();
    assert_eq!(record, Record::Completion { prompt: "q".into(), completion: "a".into() });
    let e = with(columns, json!({"prompt": "q", "completion": "a"})).unwrap_err();
    assert!(e.to_string().contains("no known format has the keys \"prompt\", \"completion\""), "{e}");
    let columns = Columns { text: Some("content".into()), ..Default::default() };
    assert_eq!(with(columns, json!({"content": "x"})).unwrap(), Record::Text { text: "x".into() });
    let columns =
        Columns { messages: Some("dialog".into()), system: Some("rules".into()), ..Default::default() };
    let dialog = json!({"dialog": [{"from": "human", "value": "a"}], "rules": "r"});
    let expected = json!([{"role": "system", "content": "r"}, {"role": "user", "content": "a"}]);
    assert_eq!(turns(&with(columns, dialog).unwrap()), expected);
    let columns = Columns { output: Some("answer".into()), ..Default::default() };
    let record = with(columns, json!({"instruction": "i", "answer": "a"})).unwrap();
    assert!(matches!(record, Record::Instruction { output, .. } if output == "a"));
}
