package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strings"

	"github.com/nats-io/nats.go"
)

// settings are the file format of a context of the nats command.
//
// Read here and not by a library: one drops settings that it doesn't know what to
// do with, and connects as somebody else then; the other one brings half a dozen
// modules along.
type settings struct {
	Name           string   `json:"name"`
	Description    string   `json:"description"`
	ColorScheme    string   `json:"color_scheme"`
	URL            string   `json:"url"`
	Creds          string   `json:"creds"`
	NKey           string   `json:"nkey"`
	User           string   `json:"user"`
	Password       string   `json:"password"`
	Token          string   `json:"token"`
	UserJWT        string   `json:"user_jwt"`
	UserSeed       string   `json:"user_seed"`
	Cert           string   `json:"cert"`
	Key            string   `json:"key"`
	CA             string   `json:"ca"`
	TLSFirst       bool     `json:"tls_first"`
	InboxPrefix    string   `json:"inbox_prefix"`
	SocksProxy     string   `json:"socks_proxy"`
	NSC            string   `json:"nsc"`
	JSDomain       string   `json:"jetstream_domain"`
	JSAPIPrefix    string   `json:"jetstream_api_prefix"`
	JSEventPrefix  string   `json:"jetstream_event_prefix"`
	WinStore       string   `json:"windows_cert_store"`
	WinMatchBy     string   `json:"windows_cert_match_by"`
	WinMatch       string   `json:"windows_cert_match"`
	WinCAs         []string `json:"windows_ca_certs_match"`
	flagged        bool     // the credentials are of flags: plain values and paths
	nameInMessages string   // of the context
}

// contextDir is where the nats command keeps its contexts.
func contextDir() (string, error) {
	parent := os.Getenv("XDG_CONFIG_HOME")
	if parent == "" {
		u, err := user.Current()
		if err != nil {
			return "", err
		}
		parent = filepath.Join(u.HomeDir, ".config")
	}
	return filepath.Join(parent, "nats", "context"), nil
}

// loadContext reads a context by its name, or from a .json file. It is never the
// one that is selected for the nats command, unless it is named here.
func loadContext(name string) (settings, error) {
	none := settings{}
	path := name
	if fi, err := os.Stat(name); err != nil || fi.IsDir() || !strings.HasSuffix(name, ".json") {
		dir, err := contextDir()
		if err != nil {
			return none, usageError("context %q: no configuration directory of the nats command: %w", name, err)
		}
		if strings.ContainsAny(name, `/\`) || strings.Contains(name, "..") {
			return none, usageError("context %q is neither a name nor a .json file that exists: %s", name, knownContexts(dir))
		}
		path = filepath.Join(dir, name+".json")
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return none, usageError("no context %q: %s", name, knownContexts(filepath.Dir(path)))
	}
	if err != nil {
		return none, usageError("context %q can't be read: %w", name, err)
	}
	s := settings{nameInMessages: name}
	if err := decodeContext(data, &s); err != nil {
		return none, usageError("context %q (%s): %w", name, path, err)
	}
	if s.URL == "" {
		s.URL = nats.DefaultURL // as for the nats command
	}
	for _, file := range []*string{&s.Creds, &s.NKey, &s.Cert, &s.Key, &s.CA} {
		*file = expandHome(*file)
	}
	return s, s.check()
}

func knownContexts(dir string) string {
	names := contextNames(dir)
	if len(names) == 0 {
		return "there are none in " + dir
	}
	return "there are " + strings.Join(names, ", ")
}

func contextNames(dir string) (names []string) {
	files, _ := os.ReadDir(dir)
	for _, f := range files {
		if name, ok := strings.CutSuffix(f.Name(), ".json"); ok {
			names = append(names, name)
		}
	}
	return names
}

// decodeContext refuses settings that it doesn't know: they may say where to
// connect or as whom. Errors don't quote values, which may be secret.
func decodeContext(data []byte, s *settings) error {
	strict := json.NewDecoder(bytes.NewReader(data))
	strict.DisallowUnknownFields()
	err := strict.Decode(s)
	var all map[string]any
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &kind):
		return fmt.Errorf("the setting %q is no %v", kind.Field, kind.Type)
	case errors.As(err, &syntax) || json.Unmarshal(data, &all) != nil:
		return errors.New("it is no JSON object")
	}
	for field, value := range all {
		known, _ := json.Marshal(settings{})
		if value != nil && value != "" && value != false && !bytes.Contains(known, []byte(`"`+field+`":`)) {
			return fmt.Errorf("the setting %q is not known to this version: name server and credentials with flags instead", field)
		}
	}
	return json.Unmarshal(data, s)
}

// check refuses what locks can't be reached through, or what is not supported.
func (s *settings) check() error {
	for _, no := range []struct{ field, value, instead string }{
		{"jetstream_domain", s.JSDomain, "connect to a server of that domain, with a context without it"},
		{"jetstream_api_prefix", s.JSAPIPrefix, "use credentials of the account that has the streams"},
		{"jetstream_event_prefix", s.JSEventPrefix, "use a context without it"},
		{"socks_proxy", s.SocksProxy, "reach the server without a proxy, or through a tunnel"},
		{"nsc", s.NSC, "write the credentials to a file with 'nsc generate creds' and use that"},
		{"windows_cert_store", s.WinStore, "use files with --tlscert, --tlskey and --tlsca"},
	} {
		if no.value != "" {
			return usageError("context %q has the setting %q, which lockfabric can't use: %s", s.nameInMessages, no.field, no.instead)
		}
	}
	if (s.Cert == "") != (s.Key == "") {
		return usageError("context %q: the settings \"cert\" and \"key\" belong together", s.nameInMessages)
	}
	if s.UserSeed != "" && s.UserJWT == "" {
		return usageError("context %q: the setting \"user_seed\" needs \"user_jwt\"", s.nameInMessages)
	}
	return nil
}

// expandHome replaces variables, and a leading ~, as the nats command does.
func expandHome(path string) string {
	path = os.ExpandEnv(path)
	if rest, ok := strings.CutPrefix(path, "~"); ok {
		if u, err := user.Current(); err == nil {
			return u.HomeDir + rest
		}
	}
	return path
}
