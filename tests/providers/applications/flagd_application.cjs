// An application with flagd's provider for Node, which runs where that is installed: see test_flagd_providers.py.
const readline = require('node:readline');
const { OpenFeature, ProviderEvents } = require('@openfeature/server-sdk');
const { FlagdProvider } = require('@openfeature/flagd-provider');

async function main() {
  for (const event of Object.values(ProviderEvents)) {
    OpenFeature.addHandler(event, (details) => {
      // A new handler is told that the SDK's own provider, which is in use until ours is, is ready.
      if (details && details.providerName === 'flagd') {
        console.log(JSON.stringify({ event, flags: details.flagsChanged || [] }));
      }
    });
  }
  await OpenFeature.setProviderAndWait(
    new FlagdProvider({
      socketPath: process.argv[2],
      selector: process.argv[3],
      resolverType: 'rpc',
      cache: 'lru',
      retryBackoffMaxMs: 500,
    }),
  );
  const client = OpenFeature.getClient();
  const ask = {
    boolean: (key, value, context) => client.getBooleanDetails(key, value, context),
    string: (key, value, context) => client.getStringDetails(key, value, context),
    integer: (key, value, context) => client.getNumberDetails(key, value, context),
    float: (key, value, context) => client.getNumberDetails(key, value, context),
    object: (key, value, context) => client.getObjectDetails(key, value, context),
  };
  console.log(JSON.stringify({ ready: true }));
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const { kind, key, default: value, context } = JSON.parse(line);
    const found = await ask[kind](key, value, context);
    console.log(
      JSON.stringify({
        value: found.value,
        reason: found.reason,
        variant: found.variant || null,
        error: found.errorCode || null,
      }),
    );
  }
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
