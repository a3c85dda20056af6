//! The API's description, made by the same calls that route it: an endpoint can't be served and left undescribed.
//!
//! A route only notes what it takes and answers. The document is megabytes while it is made, so it is made when somebody
//! asks. `docs/openapi.json` is the committed copy; a test compares the two.

use axum::Router;
use axum::handler::Handler;
use axum::routing::{self, MethodRouter};
use rung_api::ErrorBody;
use utoipa::ToSchema;
use utoipa::openapi::path::{HttpMethod, OperationBuilder, Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::{Object, Type};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    ComponentsBuilder, Content, InfoBuilder, OpenApi, OpenApiBuilder, Paths, Ref, RefOr, Required,
    ResponseBuilder, Schema,
};

use super::extract::Json;
use super::guard::{Duties, Duty};
use super::right::Right;
use crate::shared::Control;

/// What an endpoint needs, takes and answers.
pub(crate) struct Says {
    right: Right,
    summary: &'static str,
    query: &'static [&'static str],
    takes: Option<Body>,
    answers: Option<Body>,
}

struct Body {
    content_type: &'static str,
    shape: fn() -> Shape,
}

impl Body {
    fn json<T: ToSchema>() -> Self {
        Self { content_type: "application/json", shape: Shape::of::<T> }
    }

    fn bytes(content_type: &'static str) -> Self {
        Self { content_type, shape: Shape::of_bytes }
    }
}

/// What a body looks like.
struct Shape {
    schema: RefOr<Schema>,
    /// The named types that the schema refers to.
    types: Vec<(String, RefOr<Schema>)>,
}

impl Shape {
    fn of<T: ToSchema>() -> Self {
        let mut types = Vec::new();
        T::schemas(&mut types);
        let schema = if is_named::<T>() {
            types.push((T::name().into_owned(), T::schema()));
            Ref::from_schema_name(T::name()).into()
        } else {
            T::schema()
        };
        Self { schema, types }
    }

    fn of_bytes() -> Self {
        Self { schema: Object::with_type(Type::String).into(), types: Vec::new() }
    }
}

/// Structs and enums of ours have a name of their own; lists, maps and plain values do not.
fn is_named<T: ToSchema>() -> bool {
    matches!(T::schema(), RefOr::T(Schema::Object(_) | Schema::OneOf(_) | Schema::AllOf(_)))
        && T::name().starts_with(|c: char| c.is_ascii_uppercase())
        && !["String", "Vec", "BTreeMap", "Option"].contains(&T::name().as_ref())
}

pub(crate) fn says(right: Right, summary: &'static str) -> Says {
    Says { right, summary, query: &[], takes: None, answers: None }
}

impl Says {
    pub fn query(mut self, names: &'static [&'static str]) -> Self {
        self.query = names;
        self
    }

    pub fn takes<T: ToSchema>(mut self) -> Self {
        self.takes = Some(Body::json::<T>());
        self
    }

    pub fn takes_archive(mut self) -> Self {
        self.takes = Some(Body::bytes("application/x-tar"));
        self
    }

    pub fn answers<T: ToSchema>(mut self) -> Self {
        self.answers = Some(Body::json::<T>());
        self
    }

    pub fn answers_bytes(mut self, content_type: &'static str) -> Self {
        self.answers = Some(Body::bytes(content_type));
        self
    }

    /// A stream of server-sent events, each with this as its data.
    pub fn streams<T: ToSchema>(mut self) -> Self {
        self.answers = Some(Body { content_type: "text/event-stream", ..Body::json::<T>() });
        self
    }
}

/// Routes with their description.
pub(crate) struct Described {
    pub router: Router<Control>,
    pub duties: Duties,
    endpoints: Vec<Endpoint>,
}

struct Endpoint {
    method: HttpMethod,
    path: &'static str,
    says: Says,
}

impl Described {
    pub fn new() -> Self {
        Self { router: Router::new(), duties: Duties::new(), endpoints: Vec::new() }
    }

    pub fn get<H: Handler<T, Control>, T: 'static>(self, path: &'static str, handler: H, says: Says) -> Self {
        self.add(HttpMethod::Get, path, routing::get(handler), says)
    }

    pub fn post<H: Handler<T, Control>, T: 'static>(
        self,
        path: &'static str,
        handler: H,
        says: Says,
    ) -> Self {
        self.add(HttpMethod::Post, path, routing::post(handler), says)
    }

    pub fn put<H: Handler<T, Control>, T: 'static>(self, path: &'static str, handler: H, says: Says) -> Self {
        self.add(HttpMethod::Put, path, routing::put(handler), says)
    }

    pub fn patch<H: Handler<T, Control>, T: 'static>(
        self,
        path: &'static str,
        handler: H,
        says: Says,
    ) -> Self {
        self.add(HttpMethod::Patch, path, routing::patch(handler), says)
    }

    pub fn delete<H: Handler<T, Control>, T: 'static>(
        self,
        path: &'static str,
        handler: H,
        says: Says,
    ) -> Self {
        self.add(HttpMethod::Delete, path, routing::delete(handler), says)
    }

    fn add(
        mut self,
        method: HttpMethod,
        path: &'static str,
        served: MethodRouter<Control>,
        says: Says,
    ) -> Self {
        self.router = self.router.route(path, served);
        let duty = Duty { right: says.right, summary: says.summary };
        self.duties.insert((name_of(&method).to_owned(), path.to_owned()), duty);
        self.endpoints.push(Endpoint { method, path, says });
        self
    }

    /// Joins two sets of routes.
    pub fn merge(mut self, other: Self) -> Self {
        self.router = self.router.merge(other.router);
        self.duties.extend(other.duties);
        self.endpoints.extend(other.endpoints);
        self
    }

    pub fn document(self) -> OpenApi {
        let info = InfoBuilder::new()
            .title("Rung")
            .version(env!("CARGO_PKG_VERSION"))
            .description(Some("Everything that the command line does goes through this API."));
        let mut paths = Paths::new();
        let mut types = Shape::of::<ErrorBody>().types;
        for Endpoint { method, path, says } in self.endpoints {
            paths.add_path_operation(path, vec![method], operation(path, says, &mut types).build());
        }
        let token = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        let components =
            ComponentsBuilder::new().schemas_from_iter(types).security_scheme("token", token).build();
        OpenApiBuilder::new()
            .info(info.build())
            .paths(paths)
            .components(Some(components))
            .security(Some([SecurityRequirement::new("token", [""; 0])]))
            .build()
    }
}

/// An endpoint's description; the types that it names are added to `types`.
fn operation(path: &str, says: Says, types: &mut Vec<(String, RefOr<Schema>)>) -> OperationBuilder {
    let mut content = |body: Body| {
        let shape = (body.shape)();
        types.extend(shape.types);
        (body.content_type, Content::new(Some(shape.schema)))
    };
    let mut operation =
        OperationBuilder::new().summary(Some(says.summary)).description(Some(says.right.in_words()));
    for name in path_parameters(path) {
        operation = operation.parameter(parameter(name, ParameterIn::Path));
    }
    for name in says.query {
        operation = operation.parameter(parameter(name, ParameterIn::Query));
    }
    if let Some(body) = says.takes {
        let (content_type, content) = content(body);
        let request = RequestBodyBuilder::new().content(content_type, content).required(Some(Required::True));
        operation = operation.request_body(Some(request.build()));
    }
    let mut done = ResponseBuilder::new().description("done");
    if let Some(body) = says.answers {
        let (content_type, content) = content(body);
        done = done.content(content_type, content);
    }
    let refused = ResponseBuilder::new()
        .description("refused, with a stable code and a hint")
        .content("application/json", Content::new(Some(Ref::from_schema_name(ErrorBody::name()))));
    operation.response("200", done.build()).response("default", refused.build())
}

fn name_of(method: &HttpMethod) -> &'static str {
    match method {
        HttpMethod::Get => "GET",
        HttpMethod::Post => "POST",
        HttpMethod::Put => "PUT",
        HttpMethod::Delete => "DELETE",
        HttpMethod::Patch => "PATCH",
        HttpMethod::Head | HttpMethod::Options | HttpMethod::Trace => {
            unreachable!("nothing is routed by it")
        }
    }
}

fn path_parameters(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
}

fn parameter(name: &str, place: ParameterIn) -> Parameter {
    let required = if place == ParameterIn::Path { Required::True } else { Required::False };
    ParameterBuilder::new()
        .name(name)
        .parameter_in(place)
        .required(required)
        .schema(Some(Object::with_type(Type::String)))
        .build()
}

/// The description of everything that is served.
pub fn document() -> OpenApi {
    super::endpoints().document()
}

pub async fn serve() -> Json<OpenApi> {
    Json(document())
}

#[cfg(test)]
mod tests {
    use super::super::right::VIEW;
    use super::*;

    /// `UPDATE_DOCS=1 cargo test -p rung-control` writes it anew.
    #[test]
    fn the_committed_description_is_what_is_served() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
        let served = serde_json::to_string_pretty(&document()).unwrap() + "\n";
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(path, &served).unwrap();
        }
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert!(committed == served, "docs/openapi.json is not what is served; UPDATE_DOCS=1 writes it anew");
    }

    #[test]
    fn what_concerns_an_app_needs_a_right_over_that_app() {
        for ((method, path), Duty { right, .. }) in super::super::endpoints().duties {
            let of_app = path_parameters(&path).any(|name| name == "app");
            let is_right = match right {
                Right::OfApp(_) => of_app,
                Right::Anybody | Right::Anyone => !of_app,
                Right::Admin | Right::Node => true,
            };
            assert!(is_right, "{method} {path} needs {right:?}");
            let changes = method != "GET" && right == VIEW;
            assert!(!changes, "{method} {path} can be called by whoever only views");
        }
    }

    #[test]
    fn every_type_that_is_referred_to_is_described() {
        let text = serde_json::to_value(document()).unwrap();
        let mut wanted = Vec::new();
        collect_references(&text, &mut wanted);
        let known = text["components"]["schemas"].as_object().unwrap();
        for name in wanted {
            assert!(known.contains_key(&name), "{name} is referred to and not described");
        }
    }

    fn collect_references(value: &serde_json::Value, found: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(fields) => {
                if let Some(serde_json::Value::String(target)) = fields.get("$ref") {
                    found.push(target.rsplit('/').next().unwrap().to_owned());
                }
                fields.values().for_each(|value| collect_references(value, found));
            }
            serde_json::Value::Array(items) => {
                items.iter().for_each(|value| collect_references(value, found))
            }
            _ => {}
        }
    }
}
