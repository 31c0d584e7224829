//! An application with flagd's provider for Rust: see test_flagd_providers.py.
//!
//! `application SOCKET [SELECTOR]` answers questions, a line of JSON each. OpenFeature's SDK for Rust has no events.

use std::error::Error;

use open_feature::{
    EvaluationContext, EvaluationContextFieldValue, EvaluationDetails, EvaluationError, EvaluationErrorCode,
    EvaluationReason, OpenFeature, StructValue, Value as FlagValue,
};
use open_feature_flagd::{FlagdOptions, FlagdProvider};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncBufReadExt, BufReader, stdin};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut options = FlagdOptions {
        socket_path: arguments.next(),
        ..FlagdOptions::default()
    };
    options.selector = arguments.next().or(options.selector);
    let provider = FlagdProvider::new(options).await?;
    OpenFeature::singleton_mut().await.set_provider(provider).await;
    let client = OpenFeature::singleton().await.create_client();
    println!("{}", json!({"ready": true}));
    let mut lines = BufReader::new(stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let asked: Value = serde_json::from_str(&line)?;
        let key = asked["key"].as_str().ok_or("a question without a key")?;
        let default = &asked["default"];
        let context = context_of(asked["context"].as_object().ok_or("a question without a context")?);
        let context = Some(&context);
        let found = match asked["kind"].as_str().unwrap_or_default() {
            "boolean" => answer(client.get_bool_details(key, context, None).await, default),
            "string" => answer(client.get_string_details(key, context, None).await, default),
            "integer" => answer(client.get_int_details(key, context, None).await, default),
            "float" => answer(client.get_float_details(key, context, None).await, default),
            _ => {
                let found = client.get_struct_details::<StructValue>(key, context, None).await;
                answer(found.map(with_json), default)
            }
        };
        println!("{found}");
    }
    Ok(())
}

fn context_of(fields: &Map<String, Value>) -> EvaluationContext {
    let mut context = EvaluationContext::default();
    for (name, value) in fields {
        match value {
            Value::String(text) if name == "targetingKey" => context.targeting_key = Some(text.clone()),
            Value::String(text) => context.add_custom_field(name, text.clone()),
            Value::Bool(value) => context.add_custom_field(name, *value),
            Value::Number(number) => match number.as_i64() {
                Some(whole) => context.add_custom_field(name, whole),
                None => context.add_custom_field(name, EvaluationContextFieldValue::Float(number.as_f64().unwrap_or_default())),
            },
            _ => {}
        }
    }
    context
}

/// The SDK gives an error instead of the caller's default.
fn answer<T: Into<Value>>(found: Result<EvaluationDetails<T>, EvaluationError>, default: &Value) -> Value {
    match found {
        Ok(details) => json!({
            "value": details.value.into(),
            "reason": details.reason.as_ref().map(EvaluationReason::to_string),
            "variant": details.variant.filter(|variant| !variant.is_empty()),
            "error": null,
        }),
        Err(error) => json!({
            "value": default,
            "reason": "ERROR",
            "variant": null,
            // A general error's text is a message.
            "error": match error.code {
                EvaluationErrorCode::General(_) => "GENERAL".to_owned(),
                code => code.to_string(),
            },
        }),
    }
}

fn with_json(details: EvaluationDetails<StructValue>) -> EvaluationDetails<Value> {
    EvaluationDetails {
        flag_key: details.flag_key,
        value: json_of(FlagValue::Struct(details.value)),
        reason: details.reason,
        variant: details.variant,
        flag_metadata: details.flag_metadata,
    }
}

fn json_of(value: FlagValue) -> Value {
    match value {
        FlagValue::Bool(value) => value.into(),
        FlagValue::Int(value) => value.into(),
        FlagValue::Float(value) => value.into(),
        FlagValue::String(value) => value.into(),
        FlagValue::Array(values) => values.into_iter().map(json_of).collect(),
        FlagValue::Struct(value) => Value::Object(
            value.fields.into_iter().map(|(name, value)| (name, json_of(value))).collect(),
        ),
    }
}
