import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import dev.openfeature.contrib.providers.flagd.Config;
import dev.openfeature.contrib.providers.flagd.FlagdOptions;
import dev.openfeature.contrib.providers.flagd.FlagdProvider;
import dev.openfeature.sdk.Client;
import dev.openfeature.sdk.EvaluationContext;
import dev.openfeature.sdk.FlagEvaluationDetails;
import dev.openfeature.sdk.ImmutableContext;
import dev.openfeature.sdk.OpenFeatureAPI;
import dev.openfeature.sdk.ProviderEvent;
import dev.openfeature.sdk.Structure;
import dev.openfeature.sdk.Value;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** An application with flagd's provider for Java, {@code Application SOCKET [SELECTOR]}: see test_flagd_providers.py. */
public final class Application {
  private static final ObjectMapper JSON = new ObjectMapper();

  public static void main(String[] arguments) throws Exception {
    OpenFeatureAPI api = OpenFeatureAPI.getInstance();
    for (ProviderEvent event : ProviderEvent.values()) {
      api.on(
          event,
          details -> {
            // A new handler is told that the SDK's own provider, which is in use until ours is, is ready.
            if ("flagd".equalsIgnoreCase(details.getProviderName())) {
              List<String> flags = details.getFlagsChanged();
              print(Map.of("event", event.name(), "flags", flags == null ? List.of() : flags));
            }
          });
    }
    FlagdOptions.FlagdOptionsBuilder options =
        FlagdOptions.builder().resolverType(Config.Resolver.RPC).socketPath(arguments[0]);
    if (arguments.length > 1) {
      options.selector(arguments[1]);
    }
    api.setProviderAndWait(new FlagdProvider(options.build()));
    Client client = api.getClient();
    print(Map.of("ready", true));
    BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    for (String line = lines.readLine(); line != null; line = lines.readLine()) {
      print(answer(client, JSON.readTree(line)));
    }
    System.exit(0);
  }

  private static Map<String, Object> answer(Client client, JsonNode asked) throws IOException {
    String key = asked.get("key").asText();
    JsonNode fallback = asked.get("default");
    EvaluationContext context = contextOf(asked.get("context"));
    switch (asked.get("kind").asText()) {
      case "boolean":
        return shown(client.getBooleanDetails(key, fallback.asBoolean(), context));
      case "string":
        return shown(client.getStringDetails(key, fallback.asText(), context));
      case "integer":
        return shown(client.getIntegerDetails(key, fallback.asInt(), context));
      case "float":
        return shown(client.getDoubleDetails(key, fallback.asDouble(), context));
      default:
        return shown(client.getObjectDetails(key, new Value(structureOf(fallback)), context));
    }
  }

  private static EvaluationContext contextOf(JsonNode fields) {
    Map<String, Value> values = structureOf(fields).asMap();
    Value entity = values.remove("targetingKey");
    return entity == null ? new ImmutableContext(values) : new ImmutableContext(entity.asString(), values);
  }

  private static Structure structureOf(JsonNode fields) {
    return Structure.mapToStructure(JSON.convertValue(fields, Map.class));
  }

  private static Map<String, Object> shown(FlagEvaluationDetails<?> details) {
    Map<String, Object> shown = new LinkedHashMap<>();
    Object value = details.getValue();
    shown.put("value", value instanceof Value found ? found.asStructure().asObjectMap() : value);
    shown.put("reason", details.getReason());
    shown.put("variant", details.getVariant() == null || details.getVariant().isEmpty() ? null : details.getVariant());
    shown.put("error", details.getErrorCode() == null ? null : details.getErrorCode().name());
    return shown;
  }

  // Events come from threads of the SDK's.
  private static synchronized void print(Object document) {
    try {
      System.out.println(JSON.writeValueAsString(document));
    } catch (IOException error) {
      throw new IllegalStateException(error);
    }
  }
}
