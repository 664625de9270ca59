import com.google.gson.Gson;
import io.spiffe.provider.SpiffeSslContextFactory;
import io.spiffe.provider.SpiffeSslContextFactory.SslContextOptions;
import io.spiffe.spiffeid.SpiffeId;
import io.spiffe.svid.jwtsvid.JwtSvid;
import io.spiffe.svid.x509svid.X509Svid;
import io.spiffe.svid.x509svid.X509SvidValidator;
import io.spiffe.workloadapi.DefaultJwtSource;
import io.spiffe.workloadapi.DefaultWorkloadApiClient;
import io.spiffe.workloadapi.DefaultX509Source;
import io.spiffe.workloadapi.DefaultX509Source.X509SourceOptions;
import io.spiffe.workloadapi.JwtSource;
import io.spiffe.workloadapi.JwtSourceOptions;
import io.spiffe.workloadapi.Watcher;
import io.spiffe.workloadapi.WorkloadApiClient;
import io.spiffe.workloadapi.X509Context;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.OutputStream;
import java.net.InetAddress;
import java.net.Socket;
import java.nio.charset.StandardCharsets;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.CountDownLatch;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLServerSocket;
import javax.net.ssl.SSLSocket;

/** Drives java-spiffe against a Workload API socket. See ../README.md for the command line all languages share. */
public final class Interop {
    private static final String USAGE =
            "usage: fetch AUDIENCE | watch N | sources AUDIENCE | validate AUDIENCE TOKEN | mtls-server ADDR ID | mtls-client ADDR ID [--hold]";

    public static void main(String[] args) {
        try {
            run(args);
            System.exit(0);
        } catch (Exception error) {
            error.printStackTrace();
            System.exit(1);
        }
    }

    private static void run(String[] args) throws Exception {
        switch (args.length == 0 ? "" : args[0] + " " + args.length) {
            case "fetch 2" -> fetch(args[1]);
            case "watch 2" -> watch(Integer.parseInt(args[1]));
            case "sources 2" -> sources(args[1]);
            case "validate 3" -> validate(args[1], args[2]);
            case "mtls-server 3" -> mtlsServer(args[1], SpiffeId.parse(args[2]));
            case "mtls-client 3" -> mtlsClient(args[1], SpiffeId.parse(args[2]), false);
            case "mtls-client 4" -> mtlsClient(args[1], SpiffeId.parse(args[2]), true);
            default -> throw new IllegalArgumentException(USAGE);
        }
    }

    private static void fetch(String audience) throws Exception {
        try (WorkloadApiClient client = DefaultWorkloadApiClient.newClient()) {
            X509Context context = client.fetchX509Context();
            for (X509Svid svid : context.getX509Svids()) {
                X509SvidValidator.verifyChain(svid.getChain(), context.getX509BundleSet());
            }
            JwtSvid token = client.fetchJwtSvid(pick(context.getX509Svids()).getSpiffeId(), audience);
            JwtSvid verified = JwtSvid.parseAndValidate(token.getToken(), client.fetchJwtBundles(), Set.of(audience));
            print(Map.of(
                    "spiffe_ids", context.getX509Svids().stream().map(svid -> svid.getSpiffeId().toString()).toList(),
                    "trust_domains", client.fetchX509Bundles().getBundles().keySet().stream().map(Object::toString).toList(),
                    "jwt_sub", verified.getSpiffeId().toString()));
        }
    }

    private static void watch(int updates) throws Exception {
        try (WorkloadApiClient client = DefaultWorkloadApiClient.newClient()) {
            CountDownLatch remaining = new CountDownLatch(updates);
            printUpdates(client, remaining);
            remaining.await();
        }
    }

    /** Keeps an X.509 source and a JWT source open, and fetches a token for each line of its input. */
    private static void sources(String audience) throws Exception {
        try (WorkloadApiClient api = DefaultWorkloadApiClient.newClient(); DefaultX509Source source = source(api);
                JwtSource tokens = DefaultJwtSource.newSource(JwtSourceOptions.builder().workloadApiClient(api).build())) {
            printUpdates(api, new CountDownLatch(0));
            BufferedReader input = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
            for (String line = input.readLine(); line != null; line = input.readLine()) {
                try {
                    X509Svid svid = source.getX509Svid();
                    JwtSvid token = tokens.fetchJwtSvid(svid.getSpiffeId(), audience);
                    String serial = svid.getLeaf().getSerialNumber().toString(16);
                    print(Map.of("asked", line, "current", serial, "token", token.getToken()));
                } catch (Exception error) {
                    print(Map.of("asked", line, "error", reasons(error)));
                }
            }
        }
    }

    private static String reasons(Throwable error) {
        return error.getCause() == null ? error.toString() : error + ": " + reasons(error.getCause());
    }

    private static void validate(String audience, String token) throws Exception {
        try (WorkloadApiClient client = DefaultWorkloadApiClient.newClient()) {
            print(Map.of("spiffe_id", client.validateJwtSvid(token, audience).getSpiffeId().toString()));
        }
    }

    private static void mtlsServer(String address, SpiffeId client) throws Exception {
        try (WorkloadApiClient api = DefaultWorkloadApiClient.newClient(); DefaultX509Source source = source(api)) {
            Address listen = Address.parse(address);
            SSLServerSocket listener = (SSLServerSocket) tls(source, client).getServerSocketFactory()
                    .createServerSocket(listen.port, 5, InetAddress.getByName(listen.host));
            listener.setNeedClientAuth(true);
            print(Map.of("listening", listen.host + ":" + listener.getLocalPort()));
            printUpdates(api, new CountDownLatch(0));
            while (true) {
                SSLSocket socket = (SSLSocket) listener.accept();
                new Thread(() -> serve(socket, client)).start();
            }
        }
    }

    /** Answers every line with the client's SPIFFE ID, which the trust manager has verified, and the line. */
    private static void serve(SSLSocket socket, SpiffeId client) {
        try (socket) {
            try {
                socket.startHandshake();
            } catch (IOException error) {
                print(Map.of("refused", error.toString()));
                return;
            }
            BufferedReader lines = reader(socket);
            for (String line = lines.readLine(); line != null; line = lines.readLine()) {
                write(socket, client + " " + line);
            }
        } catch (IOException error) {
            error.printStackTrace();
        }
    }

    private static void mtlsClient(String address, SpiffeId server, boolean hold) throws Exception {
        try (WorkloadApiClient api = DefaultWorkloadApiClient.newClient(); DefaultX509Source source = source(api)) {
            Address target = Address.parse(address);
            try (Socket socket = tls(source, server).getSocketFactory().createSocket(target.host, target.port)) {
                BufferedReader answers = reader(socket);
                if (!hold) {
                    exchange(socket, answers, server, "hello");
                    return;
                }
                printUpdates(api, new CountDownLatch(0));
                BufferedReader input = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
                for (String line = input.readLine(); line != null; line = input.readLine()) {
                    exchange(socket, answers, server, line);
                }
            }
        }
    }

    private static void exchange(Socket socket, BufferedReader answers, SpiffeId server, String line) throws IOException {
        write(socket, line);
        String echo = answers.readLine();
        if (echo == null) {
            throw new IOException("the server closed the connection");
        }
        print(Map.of("peer", server.toString(), "echo", echo));
    }

    private static DefaultX509Source source(WorkloadApiClient client) throws Exception {
        return DefaultX509Source.newSource(
                X509SourceOptions.builder().workloadApiClient(client).svidPicker(Interop::pick).build());
    }

    private static SSLContext tls(DefaultX509Source source, SpiffeId peer) throws Exception {
        return SpiffeSslContextFactory.getSslContext(SslContextOptions.builder()
                .sslProtocol("TLS")
                .x509Source(source)
                .acceptedSpiffeIdsSupplier(() -> Set.of(peer))
                .build());
    }

    /** The SVID meant for these tests, never another identity. */
    private static X509Svid pick(List<X509Svid> svids) {
        return svids.stream().filter(svid -> "java".equals(svid.getHint())).findFirst().orElseThrow();
    }

    private static void printUpdates(WorkloadApiClient client, CountDownLatch remaining) {
        client.watchX509Context(new Watcher<X509Context>() {
            @Override
            public void onUpdate(X509Context context) {
                X509Svid svid;
                try {
                    svid = pick(context.getX509Svids());
                } catch (RuntimeException error) { // the client would swallow it and leave everyone waiting
                    onError(error);
                    return;
                }
                print(Map.of(
                        "serial", svid.getLeaf().getSerialNumber().toString(16),
                        "spiffe_id", svid.getSpiffeId().toString()));
                remaining.countDown();
            }

            @Override
            public void onError(Throwable error) {
                error.printStackTrace();
                System.exit(1);
            }
        });
    }

    private static BufferedReader reader(Socket socket) throws IOException {
        return new BufferedReader(new InputStreamReader(socket.getInputStream(), StandardCharsets.UTF_8));
    }

    private static void write(Socket socket, String line) throws IOException {
        OutputStream output = socket.getOutputStream();
        output.write((line + "\n").getBytes(StandardCharsets.UTF_8));
        output.flush();
    }

    private static void print(Map<String, ?> fields) {
        System.out.println(new Gson().toJson(fields));
    }

    private record Address(String host, int port) {
        static Address parse(String text) {
            int colon = text.lastIndexOf(':');
            return new Address(text.substring(0, colon), Integer.parseInt(text.substring(colon + 1)));
        }
    }
}
