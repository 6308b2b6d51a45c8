package natscontext

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nats-io/nats.go"
)

// Settings are the file format of a context of the nats command.
type Settings struct {
	Name          string   `json:"name"`
	Description   string   `json:"description"`
	ColorScheme   string   `json:"color_scheme"`
	URL           string   `json:"url"`
	Creds         string   `json:"creds"`
	NKey          string   `json:"nkey"`
	User          string   `json:"user"`
	Password      string   `json:"password"`
	Token         string   `json:"token"`
	UserJWT       string   `json:"user_jwt"`
	UserSeed      string   `json:"user_seed"`
	Cert          string   `json:"cert"`
	Key           string   `json:"key"`
	CA            string   `json:"ca"`
	TLSFirst      bool     `json:"tls_first"`
	InboxPrefix   string   `json:"inbox_prefix"`
	SocksProxy    string   `json:"socks_proxy"`
	NSC           string   `json:"nsc"`
	JSDomain      string   `json:"jetstream_domain"`
	JSAPIPrefix   string   `json:"jetstream_api_prefix"`
	JSEventPrefix string   `json:"jetstream_event_prefix"`
	WinStore      string   `json:"windows_cert_store"`
	WinMatchBy    string   `json:"windows_cert_match_by"`
	WinMatch      string   `json:"windows_cert_match"`
	WinCAs        []string `json:"windows_ca_certs_match"`

	// FromFlags says that the credentials are those of flags: plain values and
	// paths, without the references that a context can have in their place.
	FromFlags bool `json:"-"`

	name string // of the context, for messages
}

// Dir is where the nats command keeps its contexts.
func Dir() (string, error) {
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

// Load reads a context by its name, or from a .json file. It is never the
// one that is selected for the nats command, unless it is named here.
func Load(name string) (Settings, error) {
	none := Settings{}
	path := name
	if fi, err := os.Stat(name); err != nil || fi.IsDir() || !strings.HasSuffix(name, ".json") {
		dir, err := Dir()
		if err != nil {
			return none, fmt.Errorf("context %q: no configuration directory of the nats command: %w", name, err)
		}
		if strings.ContainsAny(name, `/\`) || strings.Contains(name, "..") {
			return none, fmt.Errorf("context %q is neither a name nor a .json file that exists: %s", name, known(dir))
		}
		path = filepath.Join(dir, name+".json")
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return none, fmt.Errorf("no context %q: %s", name, known(filepath.Dir(path)))
	}
	if err != nil {
		return none, fmt.Errorf("context %q can't be read: %w", name, err)
	}
	s := Settings{name: name}
	if err := decode(data, &s); err != nil {
		return none, fmt.Errorf("context %q (%s): %w", name, path, err)
	}
	if s.URL == "" {
		s.URL = nats.DefaultURL // as for the nats command
	}
	for _, file := range []*string{&s.Creds, &s.NKey, &s.Cert, &s.Key, &s.CA} {
		*file = expandHome(*file)
	}
	return s, s.check()
}

func known(dir string) string {
	names := Names(dir)
	if len(names) == 0 {
		return "there are none in " + dir
	}
	return "there are " + strings.Join(names, ", ")
}

// Names returns the names of the contexts in a directory.
func Names(dir string) (names []string) {
	files, _ := os.ReadDir(dir)
	for _, f := range files {
		if name, ok := strings.CutSuffix(f.Name(), ".json"); ok {
			names = append(names, name)
		}
	}
	return names
}

// decode refuses settings that it doesn't know: they may say where to
// connect or as whom. Errors don't quote values, which may be secret.
func decode(data []byte, s *Settings) error {
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
		ours, _ := json.Marshal(Settings{})
		if value != nil && value != "" && value != false && !bytes.Contains(ours, []byte(`"`+field+`":`)) {
			return fmt.Errorf("the setting %q is not known to this version: name server and credentials with flags instead", field)
		}
	}
	return json.Unmarshal(data, s)
}

// check refuses what locks can't be reached through, or what is not supported.
func (s *Settings) check() error {
	for _, no := range []struct{ field, value, instead string }{
		{"jetstream_domain", s.JSDomain, "connect to a server of that domain, with a context without it"},
		{"jetstream_api_prefix", s.JSAPIPrefix, "use credentials of the account that has the streams"},
		{"jetstream_event_prefix", s.JSEventPrefix, "use a context without it"},
		{"socks_proxy", s.SocksProxy, "reach the server without a proxy, or through a tunnel"},
		{"nsc", s.NSC, "write the credentials to a file with 'nsc generate creds' and use that"},
		{"windows_cert_store", s.WinStore, "use files with --tlscert, --tlskey and --tlsca"},
	} {
		if no.value != "" {
			return fmt.Errorf("context %q has the setting %q, which lockfabric can't use: %s", s.name, no.field, no.instead)
		}
	}
	if (s.Cert == "") != (s.Key == "") {
		return fmt.Errorf("context %q: the settings \"cert\" and \"key\" belong together", s.name)
	}
	if s.UserSeed != "" && s.UserJWT == "" {
		return fmt.Errorf("context %q: the setting \"user_seed\" needs \"user_jwt\"", s.name)
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

// Secrets are texts that no message may contain.
type Secrets []string

// AddURLs adds what stands before the host in URLs: all of it, as it is written.
func (s *Secrets) AddURLs(list string) {
	for one := range strings.SplitSeq(list, ",") {
		u, err := url.Parse(strings.TrimSpace(one))
		if err != nil || u.User == nil {
			continue
		}
		*s = append(*s, u.User.String()+"@")
		secret, ok := u.User.Password()
		if !ok {
			secret = u.User.Username() // a lone user name is a token
		}
		*s = append(*s, secret)
	}
}

// Hide replaces them in a text. Short ones are left alone unless they stand in a URL: what they turn into riddles
// would tell what they are. Nobody writes them there on purpose; this is the net under it.
func (s Secrets) Hide(text string) string {
	const short = 6
	for _, secret := range slices.Backward(slices.SortedFunc(slices.Values(s), func(a, b string) int { return len(a) - len(b) })) {
		if end, ok := strings.CutSuffix(secret, "@"); ok && end != "" {
			text = strings.ReplaceAll(text, "//"+secret, "//xxxxx@")
		}
		if len(secret) >= short {
			text = strings.ReplaceAll(text, secret, "xxxxx")
			text = strings.ReplaceAll(text, url.PathEscape(secret), "xxxxx")
		}
	}
	return text
}
