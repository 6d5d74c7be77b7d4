// Sends one mail with Logto's published SMTP connector. Argument: JSON {config, message}, as Logto gives them to it.
// Prints the server's reply; a refusal exits 1 with what the person who signs in would be told on stderr.
import createConnector from '@logto/connector-smtp';

const { config, message } = JSON.parse(process.argv[2]);
try {
  const connector = await createConnector({ getConfig: async () => config });
  const info = await connector.sendMessage(message);
  console.log(info.response);
} catch (error) {
  console.error(JSON.stringify(error.data ?? error.message));
  process.exitCode = 1;
}
