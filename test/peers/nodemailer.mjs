// Sends one mail with nodemailer, set up as Logto's SMTP connector does: the whole config goes to createTransport.
// Argument: JSON {config, mail}. Prints the server's reply; a refusal exits 1 with the server's reply on stderr.
import nodemailer from 'nodemailer';

const { config, mail } = JSON.parse(process.argv[2]);
try {
  const info = await nodemailer.createTransport(config).sendMail(mail);
  console.log(info.response);
} catch (error) {
  console.error(error.response ?? error.message);
  process.exitCode = 1;
}
