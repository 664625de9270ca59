// Command interop drives go-spiffe against a Workload API socket. See ../README.md for the command line all languages share.
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

func main() {
	if err := run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	switch {
	case len(args) == 2 && args[0] == "fetch":
		return fetch(ctx, args[1])
	case len(args) == 2 && args[0] == "watch":
		updates, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		return watch(ctx, updates)
	case len(args) == 2 && args[0] == "sources":
		return sources(ctx, args[1])
	case len(args) == 3 && args[0] == "validate":
		return validate(ctx, args[1], args[2])
	case len(args) == 3 && args[0] == "mtls-server":
		return mtlsServer(ctx, args[1], args[2])
	case len(args) == 3 && args[0] == "mtls-client":
		return mtlsClient(ctx, args[1], args[2], false)
	case len(args) == 4 && args[0] == "mtls-client" && args[3] == "--hold":
		return mtlsClient(ctx, args[1], args[2], true)
	}
	return errors.New("usage: fetch AUDIENCE | watch N | sources AUDIENCE | validate AUDIENCE TOKEN | mtls-server ADDR ID | mtls-client ADDR ID [--hold]")
}

func fetch(ctx context.Context, audience string) error {
	client, err := workloadapi.New(ctx)
	if err != nil {
		return err
	}
	defer client.Close()

	x509, err := client.FetchX509Context(ctx)
	if err != nil {
		return err
	}
	var ids []spiffeid.ID
	for _, svid := range x509.SVIDs {
		if _, _, err := x509svid.Verify(svid.Certificates, x509.Bundles); err != nil {
			return err
		}
		ids = append(ids, svid.ID)
	}
	own := pick(x509.SVIDs)
	if own == nil {
		return errors.New("no SVID with the hint `go`")
	}

	bundles, err := client.FetchX509Bundles(ctx)
	if err != nil {
		return err
	}
	trustDomains := []string{}
	for _, bundle := range bundles.Bundles() {
		trustDomains = append(trustDomains, bundle.TrustDomain().Name())
	}

	token, err := client.FetchJWTSVID(ctx, jwtsvid.Params{Audience: audience, Subject: own.ID})
	if err != nil {
		return err
	}
	jwtBundles, err := client.FetchJWTBundles(ctx)
	if err != nil {
		return err
	}
	verified, err := jwtsvid.ParseAndValidate(token.Marshal(), jwtBundles, []string{audience})
	if err != nil {
		return err
	}
	return printLine(map[string]any{"spiffe_ids": ids, "trust_domains": trustDomains, "jwt_sub": verified.ID})
}

func watch(ctx context.Context, updates int) error {
	source, err := newSource(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	for seen := 1; ; seen++ {
		if err := printSVID(source); err != nil || seen == updates {
			return err
		}
		if err := source.WaitUntilUpdated(ctx); err != nil {
			return err
		}
	}
}

// sources keeps an X.509 source and a JWT source open, and fetches a token for each line of its input.
func sources(ctx context.Context, audience string) error {
	source, err := newSource(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	tokens, err := workloadapi.NewJWTSource(ctx)
	if err != nil {
		return err
	}
	defer tokens.Close()
	go printUpdates(ctx, source)
	input := bufio.NewScanner(os.Stdin)
	for input.Scan() {
		answer := map[string]any{"asked": input.Text()}
		if svid, err := source.GetX509SVID(); err != nil {
			answer["error"] = err.Error()
		} else if token, err := tokens.FetchJWTSVID(ctx, jwtsvid.Params{Audience: audience, Subject: svid.ID}); err != nil {
			answer["error"] = err.Error()
		} else {
			answer["current"], answer["token"] = svid.Certificates[0].SerialNumber.Text(16), token.Marshal()
		}
		if err := printLine(answer); err != nil {
			return err
		}
	}
	return input.Err()
}

func validate(ctx context.Context, audience, token string) error {
	svid, err := workloadapi.ValidateJWTSVID(ctx, token, audience)
	if err != nil {
		return err
	}
	return printLine(map[string]any{"spiffe_id": svid.ID})
}

func mtlsServer(ctx context.Context, addr, expected string) error {
	client, err := spiffeid.FromString(expected)
	if err != nil {
		return err
	}
	source, err := newSource(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	listener, err := tls.Listen("tcp", addr, tlsconfig.MTLSServerConfig(source, source, tlsconfig.AuthorizeID(client)))
	if err != nil {
		return err
	}
	if err := printLine(map[string]any{"listening": listener.Addr().String()}); err != nil {
		return err
	}
	go printUpdates(ctx, source)
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		go serve(conn.(*tls.Conn))
	}
}

// serve answers every line with the client's verified SPIFFE ID and the line.
func serve(conn *tls.Conn) {
	defer conn.Close()
	if err := conn.Handshake(); err != nil {
		printLine(map[string]any{"refused": err.Error()})
		return
	}
	peer, err := spiffetls.PeerIDFromConnectionState(conn.ConnectionState())
	if err != nil {
		printLine(map[string]any{"refused": err.Error()})
		return
	}
	for lines := bufio.NewScanner(conn); lines.Scan(); {
		fmt.Fprintf(conn, "%s %s\n", peer, lines.Text())
	}
}

func mtlsClient(ctx context.Context, addr, expected string, hold bool) error {
	server, err := spiffeid.FromString(expected)
	if err != nil {
		return err
	}
	source, err := newSource(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	conn, err := tls.Dial("tcp", addr, tlsconfig.MTLSClientConfig(source, source, tlsconfig.AuthorizeID(server)))
	if err != nil {
		return err
	}
	defer conn.Close()
	peer, err := spiffetls.PeerIDFromConnectionState(conn.ConnectionState())
	if err != nil {
		return err
	}

	answers := bufio.NewReader(conn)
	exchange := func(line string) error {
		if _, err := fmt.Fprintln(conn, line); err != nil {
			return err
		}
		answer, err := answers.ReadString('\n')
		if err != nil {
			return err
		}
		return printLine(map[string]any{"peer": peer, "echo": answer[:len(answer)-1]})
	}
	if !hold {
		return exchange("hello")
	}
	go printUpdates(ctx, source)
	input := bufio.NewScanner(os.Stdin)
	for input.Scan() {
		if err := exchange(input.Text()); err != nil {
			return err
		}
	}
	return input.Err()
}

func newSource(ctx context.Context) (*workloadapi.X509Source, error) {
	return workloadapi.NewX509Source(ctx, workloadapi.WithDefaultX509SVIDPicker(pick))
}

// pick takes the SVID meant for these tests; nil makes the source fail rather than use another identity.
func pick(svids []*x509svid.SVID) *x509svid.SVID {
	for _, svid := range svids {
		if svid.Hint == "go" {
			return svid
		}
	}
	return nil
}

func printUpdates(ctx context.Context, source *workloadapi.X509Source) {
	for printSVID(source) == nil && source.WaitUntilUpdated(ctx) == nil {
	}
}

func printSVID(source *workloadapi.X509Source) error {
	svid, err := source.GetX509SVID()
	if err != nil {
		return err
	}
	serial := svid.Certificates[0].SerialNumber
	return printLine(map[string]any{"serial": serial.Text(16), "spiffe_id": svid.ID})
}

// printLine writes one line of JSON with a single write, so that lines of several goroutines never mix.
func printLine(value any) error {
	return json.NewEncoder(os.Stdout).Encode(value)
}
