"""English requests that no function serves: small talk, other people's work, and parts no function moves."""

from typing import Final

from pipeline.data.generator.grammar import Template, order, say

TEMPLATES: Final[tuple[Template, ...]] = (
    # small talk
    say("(hello|hi|hey|good morning|good evening) [there|car|my friend]"),
    say("(thanks|thank you) [very much|so much|a lot] [for your help]"),
    say("how (are you|are you doing|do you feel) [today|this morning][?]"),
    say("(what's your name|who are you|who made you)[?]"),
    say("(you are|you're) (funny|great|the best|very smart|not very helpful)"),
    say("(I love|I like|I enjoy) (driving|this car|long road trips|rainy days)"),
    say("(tell me|do you know) a (joke|story|fun fact|riddle)[?]"),
    say("I('m| am) (bored|tired|happy|hungry for adventure|in a good mood) [today]"),
    say("(do you|can you) (dream|sleep|feel pain|think|speak French)[?]"),
    say("(never mind|forget it|nothing|it's nothing|leave it) [then|thanks]"),
    say("(goodbye|bye|see you|good night) [car|later|my friend]"),
    say("(what a|it's a|this is a) (beautiful day|nice morning|long trip|lovely view)"),
    # knowledge
    say("what is {none:fact}[?]"),
    say("(do you know|can you tell me) {none:fact}[?]"),
    say("(tell|teach) me (something|more|a little) about {none:topic}"),
    say("what do you think about {none:topic}[?]"),
    say("let's (talk|chat) about {none:topic}"),
    say("(who invented|who discovered|who wrote about) {none:topic}[?]"),
    order("(explain|describe) {none:topic} [to me|in simple words]"),
    say("I('d like| want) to (know|learn|read) (more|something) about {none:topic}"),
    say("(what will|how will|will) {none:topic} (change|look|be) (tomorrow|next year|in the future)[?]"),
    # errands for someone else
    order("(order|buy|book|get) (me|us) {none:goods}"),
    say("I('d like| want) to (order|buy|book|reserve) {none:goods}"),
    say("(can|could) you (order|reserve|buy|book) {none:goods} [for me][?]"),
    say("how much (is|are|does one pay for) {none:goods}[?]"),
    say("where can I (buy|order|book) {none:goods}[?]"),
    order("(reserve|purchase) {none:goods} (online|for tonight|for tomorrow)"),
    order("{none:chore} (for me|today|tonight|before noon)"),
    say("(can|could|would) you {none:chore} [for me][?]"),
    say("I (need|want|would like) you to {none:chore}"),
    say("(help me|remind me to|don't let me forget to) {none:chore}"),
    say("who will {none:chore} (today|tomorrow|tonight)[?]"),
    # things no function moves
    order("(turn on|switch on|activate|start) the {none:unsupported_device}"),
    order("(turn|switch) the {none:unsupported_device} (on|off)"),
    say("(can|could) you (turn off|switch off|stop) the {none:unsupported_device}[?]"),
    say("is the {none:unsupported_device} (on|off|still running)[?]"),
    order("set the {none:unsupported_device} to (180 degrees|level three|maximum|automatic)"),
    say("the {none:unsupported_device} should be (on|off)"),
    order("(open|close|fold|lock) the {none:unsupported_part}"),
    say("(can|could) you (open|close|fold|check) the {none:unsupported_part}[?]"),
    say("the {none:unsupported_part} (is stuck|is broken|won't move)"),
    order("(clean|wash|repair|fix|replace) the {none:unsupported_part}"),
    say("I('d like| want| need) the {none:unsupported_part} (open|closed|locked|fixed)"),
    say("(how do I|how can I) (open|repair|use) the {none:unsupported_part}[?]"),
    order("(unlock|move|adjust|heat) the {none:unsupported_part}"),
)
