// Sends mails with Logto's published HTTP email connector, one after the other. Argument: JSON {config, messages}, as
// Logto gives them to it. Prints a JSON list: true for a mail that was taken, else what the person who signs in would be
// told. Connections are kept between mails, as in Logto.
import createConnector from '@logto/connector-http-email';

const { config, messages } = JSON.parse(process.argv[2]);
const connector = await createConnector({ getConfig: async () => config });
const results = [];
for (const message of messages) {
  try {
    await connector.sendMessage(message);
    results.push(true);
  } catch (error) {
    results.push(JSON.stringify(error.data ?? error.message));
  }
}
console.log(JSON.stringify(results));
