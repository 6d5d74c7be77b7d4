import jakarta.mail.Address;
import jakarta.mail.Message;
import jakarta.mail.Session;
import jakarta.mail.Transport;
import jakarta.mail.internet.InternetAddress;
import jakarta.mail.internet.MimeBodyPart;
import jakarta.mail.internet.MimeMessage;
import jakarta.mail.internet.MimeMultipart;
import java.io.FileInputStream;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import java.util.Date;
import java.util.Properties;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLSocketFactory;
import javax.net.ssl.TrustManagerFactory;

/**
 * Sends one mail with Jakarta Mail the way Keycloak does: multipart/alternative, Reply-To always set, and with
 * mail.smtp.from an envelope sender that need not be that of the header. Standard input: properties; those of the
 * library, and ca (a PEM file), user, password, from, to, subject, text, html. A refusal exits 1 with the server's reply.
 */
public class JakartaMail {
    public static void main(String[] args) throws Exception {
        Properties p = new Properties();
        p.load(System.in);
        p.put("mail.smtp.ssl.socketFactory", trusting(p.getProperty("ca")));
        Session session = Session.getInstance(p);
        try (Transport transport = session.getTransport("smtp")) {
            transport.connect(p.getProperty("user"), p.getProperty("password"));
            MimeMessage mail = compose(session, p);
            transport.sendMessage(mail, mail.getAllRecipients());
        } catch (jakarta.mail.MessagingException e) {
            System.err.println(e);
            System.exit(1);
        }
    }

    private static MimeMessage compose(Session session, Properties p) throws Exception {
        MimeMultipart parts = new MimeMultipart("alternative");
        for (String kind : new String[] {"text", "html"}) {
            MimeBodyPart part = new MimeBodyPart();
            part.setText(p.getProperty(kind), "UTF-8", kind.equals("text") ? "plain" : "html");
            parts.addBodyPart(part);
        }
        InternetAddress from = new InternetAddress(p.getProperty("from"), "Example", "utf-8");
        MimeMessage mail = new MimeMessage(session);
        mail.setFrom(from);
        mail.setReplyTo(new Address[] {from});
        mail.setHeader("To", p.getProperty("to"));
        mail.setSubject(p.getProperty("subject"), "utf-8");
        mail.setContent(parts);
        mail.setSentDate(new Date());
        mail.saveChanges();
        return mail;
    }

    private static SSLSocketFactory trusting(String ca) throws Exception {
        KeyStore store = KeyStore.getInstance(KeyStore.getDefaultType());
        store.load(null, null);
        try (FileInputStream file = new FileInputStream(ca)) {
            store.setCertificateEntry("ca", CertificateFactory.getInstance("X.509").generateCertificate(file));
        }
        TrustManagerFactory trust = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        trust.init(store);
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(null, trust.getTrustManagers(), null);
        return context.getSocketFactory();
    }
}
