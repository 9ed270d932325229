# TAB completion of bigramlm in fish. Lines of other programs are completed as before.

# Says whether the line is one of bigramlm's, and keeps what is offered.
function __bigramlm_is_offered
    set -l words (commandline -opc)
    set -l program (string replace -r '.*/' '' -- $words[1])
    if string match -qr '^bigramlm' -- $program
        or string match -qr '(@SCRIPTS@)\.py$' -- $words
        or contains -- bigramlm $words
        set -g __bigramlm_offered (@ANSWER@ fish $words (string unescape -- (commandline -ct); or commandline -ct) 2>/dev/null </dev/null)
        and return 0
    end
    return 1
end

for program in @PROGRAMS@
    complete -c $program -k -f -n __bigramlm_is_offered -a '(string trim -r -- $__bigramlm_offered)'
end
set -e program
