// Reads bodies as servers in Go do. A line of JSON in, {"type": the Content-Type, "body": base64}; a line out, by
// parser what a handler finds, [[name, value], …], or null where the parser refuses.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"strings"
)

type pairs [][2]string

type options struct {
	IncludeUsage json.RawMessage `json:"include_usage,omitempty"`
}

// What a handler in Go declares. The package takes a member for a field in any case.
type request struct {
	Model               json.RawMessage `json:"model,omitempty"`
	Stream              json.RawMessage `json:"stream,omitempty"`
	StreamOptions       *options        `json:"stream_options,omitempty"`
	MaxTokens           json.RawMessage `json:"max_tokens,omitempty"`
	MaxCompletionTokens json.RawMessage `json:"max_completion_tokens,omitempty"`
	MaxOutputTokens     json.RawMessage `json:"max_output_tokens,omitempty"`
	N                   json.RawMessage `json:"n,omitempty"`
	BestOf              json.RawMessage `json:"best_of,omitempty"`
	ServiceTier         json.RawMessage `json:"service_tier,omitempty"`
	Prompt              json.RawMessage `json:"prompt,omitempty"`
	Conversation        json.RawMessage `json:"conversation,omitempty"`
	PreviousResponseID  json.RawMessage `json:"previous_response_id,omitempty"`
}

func object(body []byte) pairs {
	var found map[string]json.RawMessage
	if json.Unmarshal(body, &found) != nil {
		return nil
	}
	members := pairs{}
	for name, value := range found {
		members = append(members, [2]string{name, string(value)})
	}
	return members
}

// As a handler reads that does not wait for the body's end: json.NewDecoder(r.Body).Decode(&request).
func fields(body []byte) pairs {
	var found request
	if json.NewDecoder(bytes.NewReader(body)).Decode(&found) != nil {
		return nil
	}
	whole, err := json.Marshal(found)
	if err != nil {
		return nil
	}
	return object(whole)
}

func form(kind string, body []byte) pairs {
	r, err := http.NewRequest("POST", "/", bytes.NewReader(body))
	if err != nil {
		return nil
	}
	r.Header.Set("Content-Type", kind)
	if r.ParseMultipartForm(32<<20) != nil {
		return nil
	}
	found := pairs{}
	for name, values := range r.MultipartForm.Value {
		for _, value := range append(values, r.FormValue(name)) {
			found = append(found, [2]string{name, value})
		}
	}
	for name, files := range r.MultipartForm.File {
		for _, file := range files {
			opened, err := file.Open()
			if err != nil {
				return nil
			}
			value, err := io.ReadAll(opened)
			if err != nil {
				return nil
			}
			found = append(found, [2]string{name, string(value)})
		}
	}
	return found
}

func main() {
	lines := bufio.NewReader(os.Stdin)
	answers := json.NewEncoder(os.Stdout)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return
		}
		var asked struct {
			Type string
			Body []byte
		}
		if json.Unmarshal(line, &asked) != nil {
			os.Exit(1)
		}
		var found map[string]pairs
		if strings.Contains(strings.ToLower(asked.Type), "json") {
			found = map[string]pairs{"json.Unmarshal": object(asked.Body), "json.Decoder": fields(asked.Body)}
		} else {
			found = map[string]pairs{"net/http": form(asked.Type, asked.Body)}
		}
		if answers.Encode(found) != nil {
			return
		}
	}
}
