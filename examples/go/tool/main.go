// A small tool that asks the tether agent of its host, by RFC 7662 introspection, whether to serve a request:
//
//	go run . 127.0.0.1:8702 http://127.0.0.1:8710/introspect
//
// The second address is `[http] address` of the agent. Which requests this tool may ask about is decided by its
// registration entry, which lists http://127.0.0.1:8702/ under `serves`.
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

const limit = 1 << 20

// Caller is who the agent says a request is from.
type Caller struct {
	Active  bool   `json:"active"`
	Agent   string `json:"client_id"`
	User    string `json:"sub"`
	Session string `json:"session"`
	Purpose string `json:"purpose"`
	Scope   string `json:"scope"`
	Txn     string `json:"txn"`
}

// Verifier lets a request through to the next handler when the agent says that it is good.
type Verifier struct {
	// Base is where the tool is reached, by its own configuration: what a request says of its host is not asked.
	Base string
	// Endpoint is the agent's.
	Endpoint string
	Client   *http.Client
}

type callerKey struct{}

// Wrap puts the question before next, and the answer into the request's context.
func (v *Verifier) Wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
		if err != nil {
			refuse(w, http.StatusRequestEntityTooLarge, "too_large")
			return
		}
		caller, err := v.ask(r, body)
		switch {
		case err != nil:
			log.Printf("cannot ask the agent: %v", err)
			refuse(w, http.StatusServiceUnavailable, "unavailable")
		case !caller.Active:
			w.Header().Set("WWW-Authenticate", "WPT")
			refuse(w, http.StatusUnauthorized, "unproven")
		default:
			r.Body = io.NopCloser(bytes.NewReader(body))
			next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, caller)))
		}
	})
}

// ask asks the agent. A request without exactly one WIT and one proof is from nobody.
func (v *Verifier) ask(r *http.Request, body []byte) (Caller, error) {
	wit, authorization := r.Header.Values("Workload-Identity-Token"), r.Header.Values("Authorization")
	if len(wit) != 1 || len(authorization) != 1 {
		return Caller{}, nil
	}
	scheme, proof, _ := strings.Cut(authorization[0], " ")
	if !strings.EqualFold(scheme, "WPT") {
		return Caller{}, nil
	}
	digest := sha256.Sum256(body)
	form := url.Values{
		"token":           {wit[0]},
		"proof":           {strings.TrimSpace(proof)},
		"method":          {r.Method},
		"uri":             {v.Base + r.URL.EscapedPath()},
		"body_sha256":     {base64.RawURLEncoding.EncodeToString(digest[:])},
		"require_session": {"true"},
		"min_binding":     {"2"},
	}
	answer, err := v.Client.PostForm(v.Endpoint, form)
	if err != nil {
		return Caller{}, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return Caller{}, fmt.Errorf("the agent answered %s", answer.Status)
	}
	var caller Caller
	err = json.NewDecoder(io.LimitReader(answer.Body, limit)).Decode(&caller)
	return caller, err
}

func refuse(w http.ResponseWriter, status int, class string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	fmt.Fprintf(w, "{\"error\":%q}\n", class)
}

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: tool ADDRESS:PORT INTROSPECTION_ENDPOINT")
	}
	// No proxy: the agent finds out who asks by the connection.
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{}}
	verifier := &Verifier{Base: "http://" + os.Args[1], Endpoint: os.Args[2], Client: client}
	tool := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		caller := r.Context().Value(callerKey{}).(Caller)
		fmt.Fprintf(w, "%s, %s: %s\n", caller.Agent, caller.Purpose, r.URL.Path)
	})
	listener, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("listening at http://%s\n", listener.Addr())
	log.Fatal((&http.Server{Handler: verifier.Wrap(tool), ReadHeaderTimeout: 10 * time.Second}).Serve(listener))
}
